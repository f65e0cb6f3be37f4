"""From `--weights` to a folder: a path as it is, an `org/name` from the local Hugging Face cache or by download."""

from __future__ import annotations

import re
from pathlib import Path

from minillm.weights.checkpoint import find, read_index

DEMO = Path(__file__).parent / "demo"  # the checkpoint that ships with the package
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")

# What a checkpoint may have besides its config and weights.
SMALL_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def resolve(weights: str | Path | None, tensors: bool = True, card: bool = False) -> Path:
    """The folder of a checkpoint, None being the demonstration; without `tensors` its config and index are enough, and
    with `card` a download of these brings the model card too.

    Raises ValueError when it is neither on disk nor in the cache nor to be had.
    """
    if weights is None:
        return DEMO
    if not str(weights):
        raise ValueError("the path of the weights is empty; give a checkpoint folder or org/name")
    try:
        folder = Path(weights).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{weights}: {error}") from None
    if folder.exists() or not REPO_ID.fullmatch(str(weights)):
        if folder.is_file():
            raise ValueError(f"{weights}: a file; give the folder of a checkpoint")
        if not folder.is_dir():
            raise ValueError(
                f"{weights}: no such folder; give a checkpoint folder or a Hugging Face id such as org/name"
            )
        return folder
    cached, complete = _cached(str(weights), tensors)
    if cached and complete:
        return cached
    try:
        return _download(str(weights), tensors, card)
    except ValueError:
        if cached and not tensors:  # without a connection its config alone still tells much
            return cached
        raise


def name_of(folder: Path) -> str:
    """A checkpoint's name: its folder's, or "org/name" of one in the hub cache (models--org--name/snapshots)."""
    folder = folder.resolve()
    repo = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repo.startswith("models--"):
        return repo.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def _cached(repo: str, tensors: bool) -> tuple[Path | None, bool]:
    """The newest snapshot in the local cache that has a config, and whether it has the rest that is needed."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json")
    if not isinstance(config, str):
        return None, False
    folder = Path(config).parent
    found = find(folder)
    return folder, found is not None and (not tensors or all((folder / file).is_file() for file in found[0]))


def _download(repo: str, tensors: bool, card: bool) -> Path:
    """Fetch config.json, the small files that exist, and the first kind of weights that does.

    Only the files named here are asked for; the library shows the progress of each and keeps them in its cache.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(repo, file))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # no connection, which is another thing than no file
                raise
            return None

    try:
        # Asked once and without the library's retries, so that a machine without a connection hears so at once.
        get_hf_file_metadata(hf_hub_url(repo, "config.json"))
        config = Path(hf_hub_download(repo, "config.json"))
        if not tensors:
            fetch("model.safetensors.index.json")
            if card:
                fetch("README.md")
            return config.parent
        for file in SMALL_FILES:
            fetch(file)
        weights = next((path for kind in WEIGHTS if (path := fetch(kind))), None)
        shards = sorted(set(read_index(weights).values())) if weights and weights.suffix == ".json" else []
        missing = [shard for shard in shards if fetch(shard) is None]
    except Exception as error:  # which one depends on the HTTP library that this version of the hub client uses
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:160]
        raise ValueError(
            f"{repo}: not a folder, not in the local Hugging Face cache, and it could not be downloaded ({reason}); "
            "check the name and the connection, or give a folder"
        ) from None
    if weights is None or missing:
        lacks = ", ".join(missing) if missing else " and ".join(WEIGHTS)
        raise ValueError(f"{repo}: the repository lacks {lacks}; it cannot be loaded")
    return config.parent
