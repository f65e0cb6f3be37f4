"""From `--weights` to a folder: a path as it is, an `org/name` from the local Hugging Face cache or by download. A GGUF
file is a folder too (`guard.files.mount`): its small files are made of its metadata."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minillm.families.gguf import config as gguf_config
from minillm.families.gguf import vocabulary as gguf_vocabulary
from minillm.families.makers import layouts
from minillm.guard.files import is_there, mount, read_bytes
from minillm.guard.jsonfile import read_json
from minillm.guard.screen import note
from minillm.hub.download import SMALL_FILES as SMALL_FILES
from minillm.hub.download import cached, download
from minillm.text import ranks
from minillm.weights import consolidated, foreign
from minillm.weights.checkpoint import Checkpoint, entry
from minillm.weights.gguf import reader, tensors

DEMO = Path(__file__).parent.parent / "demo"  # the checkpoint that ships with the package
REPO_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@(.*))?")
VERSION = re.compile(r"tokenizer\.model\.v\d+(m\d+)?")
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
REVISION = re.compile(r"[\w./+-]+")


def resolve(weights: str | Path | None, tensors: bool = True, card: bool = False, revision: str | None = None) -> Path:
    """The folder or GGUF file of a checkpoint, None being the demonstration; without `tensors` its config and index are
    enough, and with `card` a download of these brings the model card too. An id may have a revision behind it,
    "org/name@v1.0".

    Raises ValueError when it is neither on disk nor in the cache nor to be had, and for a folder of another kind.
    """
    if weights is None:
        return _without(revision, "the built-in demo", DEMO)
    if not str(weights):
        raise ValueError("the path of the weights is empty; give a checkpoint folder or org/name")
    try:
        folder = Path(weights).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{weights}: {error}") from None
    named = REPO_ID.fullmatch(str(weights))
    if folder.exists() or not named:
        return _without(revision, str(weights), _checked(folder, str(weights), tensors))
    repo, behind = named.groups()
    if behind is not None and revision not in (None, behind):
        raise ValueError(f"{weights} and --revision {revision} (revision) name two revisions; leave one out")
    wanted = behind if revision is None else revision
    if wanted is not None and (not REVISION.fullmatch(wanted) or ".." in wanted):
        raise ValueError(f"the revision {wanted!r} cannot be one; give a branch, a tag or a commit")
    there, lacks = cached(repo, tensors, wanted)
    if there and not lacks:
        return _opened(there)
    try:
        return _opened(download(repo, tensors, card, wanted, lacks))
    except ValueError:
        if there and not tensors:  # without a connection its config alone still tells much
            return _opened(there)
        raise


def _opened(snapshot: Path) -> Path:
    return _makers(snapshot) if consolidated.is_one(entry(snapshot)) else snapshot


def _without(revision: str | None, what: str, folder: Path) -> Path:
    if revision is not None:
        raise ValueError(f"--revision {revision} (revision) goes with an org/name; {what} has no revisions")
    return folder


def _checked(folder: Path, given: str, tensors: bool) -> Path:
    """A folder or a GGUF file on disk. Raises ValueError that says what it is where it is no checkpoint."""
    if folder.is_file():
        if not reader.is_one(folder):
            raise ValueError(
                f"{given}: a file; give the folder of a checkpoint in Hugging Face layout, or a .gguf file"
            )
        return _mounted(folder)
    if not folder.is_dir():
        raise ValueError(f"{given}: no such folder; give a checkpoint folder or a Hugging Face id such as org/name")
    mount(folder, {})  # in place of what an earlier look at it has put there
    reason = foreign.damaged(folder)
    if reason is None and (file := foreign.only_gguf(folder)):
        return _mounted(file)
    if reason is None and consolidated.is_one(entry(folder)):
        return _makers(folder)
    if reason is None and not any(is_there(folder / name) for name in TOKENIZERS) and (made := _vocabulary(folder)):
        mount(folder, made)
    if reason is None and not is_there(folder / "config.json"):
        reason = (other := foreign.instead_of_config(folder)) and f"no config.json: this is {other}"
    elif reason is None and tensors:
        reason = (other := foreign.instead_of_weights(folder)) and f"no weights found: this is {other}"
    if reason:
        raise ValueError(f"{given}: {reason}")
    return folder


def _mounted(path: Path) -> Path:
    """A GGUF file as a folder. Raises ValueError for one that is damaged or of a model that no family here has."""
    contents = reader.read(path)
    try:
        values = gguf_config.config(contents.metadata, _Tensors(contents))
        ends = gguf_vocabulary.end_ids(contents.metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    made = {"config.json": values, "generation_config.json": {"eos_token_id": ends} if ends else {}}
    small = {**_written(made), **gguf_vocabulary.files(contents.metadata)}
    if reason := gguf_vocabulary.refusal(contents.metadata):
        note(f"{path}: {reason}; texts are not read, token ids are")
    if card := gguf_config.card(contents.metadata):
        small["README.md"] = lambda: card
    mount(path, small)
    return path


def _written(made: Mapping[str, Any]) -> dict[str, Callable[[], bytes]]:
    """Objects by the names of the JSON files that they are in."""
    return {name: functools.partial(str.encode, json.dumps(each)) for name, each in made.items()}


def _makers(folder: Path) -> Path:
    """A folder in its maker's own layout, with the files that it lacks. Raises ValueError for a model that no family
    here has."""
    params = read_json(folder / consolidated.PARAMS)

    def head() -> tuple[int, ...] | None:
        found = Checkpoint(folder).info.get("output.weight")
        return None if found is None else found.shape

    try:
        values = layouts.config(params, head)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    small, ends, special = _vocabulary(folder), list[int](), (ranks.BOS, ranks.EOS)
    model, said = None if small else _model(folder), layouts.tokens(params)
    if model and model.parent != folder:
        note(f"{folder}: no tokenizer.model here; the one of the folder above is taken")
    if said and model and ranks.is_tiktoken(data := read_bytes(model, ranks.MAX_BYTES)):
        pattern, tokens, places = said
        special, ends = (tokens[0], tokens[places[0]]), [values["vocab_size"] - len(tokens) + i for i in places]
        small["tokenizer.json"] = lambda: ranks.written(ranks.from_tiktoken(data, pattern, tokens))
    elif model and model.parent != folder:
        small["tokenizer.model"] = lambda: read_bytes(model, ranks.MAX_BYTES)
    settings = dict(zip(("bos_token", "eos_token"), special, strict=True))
    made = {"generation_config.json": {"eos_token_id": ends} if ends else {}, "tokenizer_config.json": settings}
    made = {name: each for name, each in made.items() if not is_there(folder / name)}
    mount(folder, {**_written({**made, "config.json": values}), **small})
    return folder


def _model(folder: Path) -> Path | None:
    """The tokenizer.model of a folder in a maker's layout, which may lie beside the folders of several sizes."""
    return next((path for each in (folder, folder.parent) if is_there(path := each / TOKENIZERS[1])), None)


def _vocabulary(folder: Path) -> dict[str, Callable[[], bytes]]:
    """What stands for a tokenizer under another name, as a file that is read here."""
    if is_there(path := folder / "tekken.json"):
        return {"tokenizer.json": lambda: ranks.written(ranks.from_tekken(read_json(path)))}
    numbered = sorted(each.name for each in folder.iterdir() if VERSION.fullmatch(each.name))
    return {"tokenizer.model": lambda: read_bytes(folder / numbered[-1], ranks.MAX_BYTES)} if numbered else {}


class _Tensors:
    """What a config asks of tensors."""

    def __init__(self, contents: reader.Contents):
        self.entries = contents.entries

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.entries[name].shape if name in self.entries else None

    def values(self, name: str) -> list[float]:
        return tensors.stored(self.entries[name]).values().tolist()

    def kinds(self) -> dict[str, int]:
        """Bytes by the kind of blocks."""
        found: dict[str, int] = {}
        for each in self.entries.values():
            found[each.kind.name] = found.get(each.kind.name, 0) + each.nbytes
        return found


def name_of(folder: Path) -> str:
    """A checkpoint's name: its folder's, or "org/name" of one in the hub cache (models--org--name/snapshots)."""
    folder = folder.resolve()
    repo = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repo.startswith("models--"):
        return repo.removeprefix("models--").replace("--", "/", 1)
    return folder.name
