"""What a repository of the hub has that is needed, from the local cache or by download."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from minillm.config import SIDECARS
from minillm.weights import consolidated
from minillm.weights.checkpoint import brief, find, read_index

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
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
NUMBERED = tuple(f"tokenizer.model.v{number}" for number in ("7m1", 7, 3, 2, 1))  # by Mistral
VOCABULARIES = ("tekken.json", "tokenizer.model", *NUMBERED)


@dataclass(frozen=True)
class Layout:
    """The file that a repository is known by, others that it may have, and what each kind of weights begins with."""

    first: str
    small: tuple[str, ...]
    weights: tuple[str, ...]


LAYOUTS = (
    Layout("config.json", (*SMALL_FILES, *SIDECARS), WEIGHTS),
    Layout(consolidated.PARAMS, VOCABULARIES, (*consolidated.PLAIN, consolidated.FIRST)),
)


def cached(repo: str, tensors: bool, revision: str | None) -> tuple[Path | None, list[str]]:
    """The snapshot in the local cache that has a config, and which of the files that are needed it lacks."""
    from huggingface_hub import try_to_load_from_cache

    places = [try_to_load_from_cache(repo, layout.first, revision=revision) for layout in LAYOUTS]
    known = next((place for place in places if isinstance(place, str)), None)
    if known is None:
        return None, []
    folder = Path(known).parent
    found = find(folder)
    if found is None:
        return folder, [" or ".join(LAYOUTS[0].weights[:2])]
    return folder, [file for file in found[0] if tensors and not (folder / file).is_file()]


def download(repo: str, tensors: bool, card: bool, revision: str | None, lacks: list[str]) -> Path:
    """Fetch config.json, or a maker's params.json where there is none, the small files that exist, and the first kind
    of weights that does.

    Only the files named here are asked for; the library shows the progress of each and keeps them in its cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(repo, file, revision=revision))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # no connection, which is another thing than no file
                raise
            return None

    try:
        layout = _layout(repo, revision)
        config = Path(hf_hub_download(repo, layout.first, revision=revision))
        if not tensors and layout is LAYOUTS[0]:
            for file in ("model.safetensors.index.json", *SIDECARS):
                fetch(file)
            if card:
                fetch("README.md")
            return config.parent
        for file in layout.small:
            fetch(file)
        weights = next((path for kind in layout.weights if tensors and (path := fetch(kind))), None)
        if weights is not None and weights.name == consolidated.FIRST:
            numbers = itertools.count(1)
            while fetch(f"consolidated.{next(numbers):02}.pth"):
                pass
        shards = sorted(set(read_index(weights).values())) if weights and weights.suffix == ".json" else []
        missing = [shard for shard in shards if fetch(shard) is None]
    except Exception as error:  # which one depends on the HTTP library that this version of the hub client uses
        raise ValueError(_refusal(repo, revision, lacks, error)) from None
    if not tensors:
        reason = "in its maker's own layout, of which little is known without the weights"
        raise ValueError(f"{repo}: {reason}; fetch these first, with minillm.generate")
    if weights is None or missing:
        absent = ", ".join(missing) if missing else " and ".join(layout.weights)
        raise ValueError(f"{repo}: the repository lacks {absent}; it cannot be loaded")
    return config.parent


def _layout(repo: str, revision: str | None) -> Layout:
    """That of a repository. Asked without the library's retries, so that a machine without a connection hears so at
    once."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for layout in LAYOUTS:
        try:
            get_hf_file_metadata(hf_hub_url(repo, layout.first, revision=revision))
            return layout
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) or layout is LAYOUTS[-1]:
                raise
    raise AssertionError


def _refusal(repo: str, revision: str | None, lacks: list[str], error: Exception) -> str:
    """Why nothing could be downloaded, and what to do."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    login = "`hf auth login` or HF_TOKEN"
    page = f"https://huggingface.co/{repo}"
    if isinstance(error, GatedRepoError) and error.response.status_code == 403:
        return (
            f"{repo} is gated, and the account of this token has no access to it (yet): ask for it at {page}, wait "
            f"until it is granted, or give another account's token ({login})"
        )
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated: accept its terms at {page}, then log in by {login}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo}: the hub knows no such repository; check the name, and if it is private log in by {login}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; give one of the branches, tags and commits of {page}"
    if isinstance(error, EntryNotFoundError) and getattr(error, "response", None) is not None:
        return f"{repo}: the repository has no config.json and no params.json; give one in Hugging Face layout"
    reason = f"{type(error).__name__}: {error}".split("\n")[0][:160]
    at = f" at revision {revision}" if revision else ""
    if lacks:
        there = f"the local Hugging Face cache has only a part{at} and lacks {brief(lacks)}, which"
    else:
        there = f"not a folder, not in the local Hugging Face cache{at}, and it"
    return f"{repo}: {there} could not be downloaded ({reason}); check the name and the connection, or give a folder"
