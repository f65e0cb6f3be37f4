"""Which checkpoints are to be served: the one of `--weights`, those of a folder, or those of a file (`--models`).

- name: small                  # or a list of names, of which the first is what answers say
  weights: /models/small       # a folder, a GGUF file or org/name
  cache_memory: 2000000000     # this and what follows is optional, and means what the flag of its name does
  dtype: bfloat16
  quantize: int8
  group_size: 32
  chat_template: FILE
  tool_style: tagged
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta

import minillm
from minillm.engine.batching.room import BUDGET, SIZE, counts, positions_in
from minillm.guard import files, memory
from minillm.guard.jsonfile import read_json
from minillm.guard.screen import note
from minillm.loading import Laid, lay_out, load
from minillm.media import tower
from minillm.ops.device import resolve_device
from minillm.serve.models import Served, card
from minillm.serve.models.catalog import Model
from minillm.text import chat

WARM = 20  # tokens of a first prompt
MAX_MODELS = 1000
SHARE = 0.8  # of the memory that is left, for all models
CACHE_SHARE = 0.1  # of that, for the cache of one
Name = Annotated[str, Meta(min_length=1, max_length=200)]


class Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A checkpoint as the file has it."""

    name: Name | Annotated[list[Name], Meta(min_length=1)]
    weights: str
    cache_memory: Annotated[float, Meta(gt=0)] | None = None
    dtype: str | None = None
    quantize: Literal["int8", "int4"] | None = None
    group_size: Annotated[int, Meta(ge=1)] | None = None
    chat_template: str | None = None
    tool_style: str | None = None


@dataclass(frozen=True)
class Source:
    """A checkpoint, and how it is to be loaded: options of `loading.load`, of `Engine`, and a chat template to take in
    place of its own. `cache_memory` is as `Engine` takes it."""

    names: tuple[str, ...]
    options: dict[str, Any]
    cache_memory: float | None = None
    max_batch: int = 32
    max_waiting: int = 1000
    deterministic: bool = False
    template: str | None = None
    style: str | None = None

    def served(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Served:
        """Load it. One answer is written before anybody asks, in which loops are compiled: else the first client would
        wait for it. Raises ValueError."""
        llm = load(**self.options, progress=progress)
        if self.template is not None:
            llm.use_chat_template(self.template)
        rows, waiting = self.max_batch, self.max_waiting
        engine = minillm.Engine(llm, self.cache_memory, rows, waiting, deterministic=self.deterministic)
        made = Served(llm, engine, self.names, self.style)
        tuple(engine.submit(llm.completion(prompt_ids=[0] * WARM, max_new_tokens=2, ignore_eos=True)))
        return made

    def model(self, memory: int) -> Model:
        """What is known of it before it is loaded, which takes less than so many bytes. Raises ValueError for one that
        cannot be loaded, or takes more by itself."""
        laid, cache = lay_out(**self.options), int(self.cache_memory or 0)
        weights = laid.nbytes + tower.nbytes(laid.values, laid.model.dtype)
        if weights + cache > memory:
            raise ValueError(
                f"it takes {_gb(weights)} of weights and {_gb(cache)} of cache, --model-memory is {_gb(memory)}; "
                "give more, or less to --cache-memory"
            )
        positions = positions_in(laid.model, cache, self.max_batch, BUDGET)
        if None not in counts(laid.model, SIZE, 1, SIZE):  # all layers have windows, or states: a text has no end
            positions = laid.model.spec.context
        made = card(self.names, laid.values, laid.model, self.template or _template(laid), positions)
        return Model(made, weights + cache, self.served)


def _template(laid: Laid) -> str | None:
    path = laid.folder / "tokenizer_config.json"
    return chat.find(laid.folder, read_json(path) if files.is_there(path) else {})


def bound(wanted: float | None, device: str) -> int:
    """The bytes that all models may take: so many, or a share of up to 1 of what is left. Raises ValueError."""
    share = SHARE if wanted is None else wanted
    if share <= 0:
        raise ValueError(f"--model-memory is {wanted}; give a number of bytes, or a share of up to 1")
    if share > 1:
        return int(share)
    target = resolve_device(device)
    left = torch.cuda.mem_get_info(target)[0] if target.type == "cuda" else memory.available()
    if left is None:
        raise ValueError("this system does not say how much memory is left; give --model-memory in bytes")
    return int(share * left)


def models(path: Path, base: Source, most: int) -> tuple[list[Model], dict[str, str]]:
    """The checkpoints of a folder or of a file, each loaded as `base` says and as the file says of it; and the names of
    those in a folder that cannot be served, and why. Raises ValueError for one in a file, and where there are none."""
    sources = _in_folder(path, base) if path.is_dir() else _in_file(path, base)
    made, absent = list[Model](), dict[str, str]()
    for source in sources:
        wanted = CACHE_SHARE if source.cache_memory is None else source.cache_memory
        exact = replace(source, cache_memory=wanted * most if wanted <= 1 else wanted)
        try:
            made.append(exact.model(most))
        except (ValueError, OSError) as error:
            if not path.is_dir():
                raise ValueError(f"{path}: {source.names[0]}: {error}") from None
            note(f"{source.names[0]} is left out: {error}")
            absent[source.names[0]] = str(error).replace(str(source.options["path"]), source.names[0])
    if not made:
        raise ValueError(f"{path}: no checkpoint in it that can be served; give a folder of checkpoints, or a file")
    names = [name for each in made for name in each.card.names]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path}: two models have the name {twice!r}; give each its own")
    return made, absent


def _in_folder(path: Path, base: Source) -> list[Source]:
    """A source for each folder in it and each GGUF file, by name."""
    found = [each for each in sorted(path.iterdir()) if not each.name.startswith(".")]
    kept = [each for each in found if each.is_dir() or each.suffix == ".gguf"][:MAX_MODELS]
    return [replace(base, names=(_name(each),), options={**base.options, "path": each}) for each in kept]


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _in_file(path: Path, base: Source) -> list[Source]:
    text = files.read_text(files.text_file("--models", str(path)))
    try:
        entries: list[Entry] = msgspec.yaml.decode(text, type=Annotated[list[Entry], Meta(max_length=MAX_MODELS)])
    except msgspec.DecodeError as error:  # ValidationError too
        raise ValueError(f"{path}: {error}; expected a list of entries with name and weights") from None
    return [_of(each, base) for each in entries]


def _of(entry: Entry, base: Source) -> Source:
    given = {name: getattr(entry, name) for name in ("dtype", "quantize", "group_size")}
    options = {
        **base.options,
        "path": entry.weights,
        **{name: each for name, each in given.items() if each is not None},
    }
    return replace(
        base,
        names=(entry.name,) if isinstance(entry.name, str) else tuple(entry.name),
        options=options,
        cache_memory=base.cache_memory if entry.cache_memory is None else entry.cache_memory,
        template=template(entry.chat_template, "chat_template") if entry.chat_template else base.template,
        style=entry.tool_style or base.style,
    )


def template(path: str, what: str) -> str:
    """The text of a file with a chat template. Raises ValueError where there is none."""
    return files.read_text(files.text_file(what, path))


def _gb(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
