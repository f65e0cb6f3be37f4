"""From `--weights` to a folder: a path as it is, an `org/name` from the local Hugging Face cache or by download."""

from __future__ import annotations

import json
import re
from pathlib import Path

from minillm.weights.checkpoint import find

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")

# What a checkpoint needs besides its weights.
SMALL_FILES = (
    "config.json",
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


def resolve(weights: str | Path) -> Path:
    """The folder of a checkpoint. Raises ValueError when it is neither on disk nor in the cache nor to be had."""
    folder = Path(weights).expanduser()
    if folder.exists() or not REPO_ID.fullmatch(str(weights)):
        if folder.is_file():
            raise ValueError(f"{weights}: a file; give the folder of a checkpoint")
        if not folder.is_dir():
            raise ValueError(
                f"{weights}: no such folder; give a checkpoint folder or a Hugging Face id such as org/name"
            )
        return folder
    return _cached(str(weights)) or _download(str(weights))


def _cached(repo: str) -> Path | None:
    """The newest complete snapshot in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    found = find(folder)
    return folder if found and all((folder / file).is_file() for file in found[0]) else None


def _download(repo: str) -> Path:
    """Fetch the small files that exist, then the first kind of weights that does; the library shows its progress."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(repo, file))

    try:
        present = set(HfApi().list_repo_files(repo))
        kind = next((file for file in WEIGHTS if file in present), None)
        if "config.json" not in present or kind is None:
            raise ValueError(f"{repo}: the repository has no config.json with safetensors or .bin weights beside it")
        for file in SMALL_FILES:
            if file in present:
                folder = fetch(file).parent
        path = fetch(kind)
        if kind.endswith(".json"):
            for shard in sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())):
                fetch(shard)
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:160]
        raise ValueError(
            f"{repo}: not a folder, not in the local Hugging Face cache, and it could not be downloaded ({reason}); "
            "check the name and the connection, or give a folder"
        ) from None
