"""Adapters on a model that is loaded to be used: one for all, or several of which each request chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minillm.adapters.adapter import FILE, TENSORS, Adapter
from minillm.adapters.build import Base
from minillm.adapters.merging import merge, mergeable
from minillm.adapters.read import read
from minillm.guard.screen import note
from minillm.llm import LLM
from minillm.model.mla import LatentAttention
from minillm.ops import REFERENCE
from minillm.ops.ranks import ALONE

CHUNK = 2**22


def use(llm: LLM, given: str | Path | Mapping[str, str | Path], merged: bool | None = None, share: Any = None) -> None:
    """Put the adapter of a folder on a model, or those of a map, of which a request names one (`adapter=`).

    The one adapter of a model that runs through the compiled loops is `merged` into plain weights, as these take
    nothing but weights; anywhere else, and where that is False, it stays beside them. Of a model of which only a
    `share` (`parallel.share.Share`) is here, it is cut as that is. Raises ValueError for folders that are no adapters
    of this model.
    """
    if isinstance(given, Mapping):
        return _several(llm, given, share)
    adapter = _read(llm, given, share)
    adapter.freeze()
    loops = llm.device.type == "cpu" and replace(llm.model.ops, ranks=ALONE) != REFERENCE
    if merged is None:
        merged = loops and mergeable(adapter)
    elif merged and not mergeable(adapter):
        raise ValueError(f"{given}: the weights are quantised or have no bias to add to, so it cannot be merged; leave "
                         "it beside them")  # fmt: skip
    if merged:
        note(f"the adapter {given} is merged into the weights: {merge(adapter)}")
    else:
        note(
            f"the adapter {given} is applied beside the weights ({len(adapter.modules) + len(adapter.targeted)} names)"
        )


def _read(llm: LLM, folder: str | Path, share: Any, name: str = "default") -> Adapter:
    if share is None:
        return read(llm, folder, name)
    return read(Base(share.whole(llm.model.dtype), llm.values, llm.device), folder, name).onto(llm.model, share)


def _several(llm: LLM, given: Mapping[str, str | Path], share: Any) -> None:
    for name, folder in given.items():
        adapter = _read(llm, folder, share, name)
        adapter.off()
        adapter.freeze()
        if adapter.whole:
            raise ValueError(f"{folder}: it has whole modules of its own ({', '.join(adapter.whole)}), which requests "
                             "cannot choose; load it alone, or merge it")  # fmt: skip
        owners = {owner: llm.model.get_submodule(owner) for owner, _ in adapter.deltas}
        if latent := [owner for owner, module in owners.items() if isinstance(module, LatentAttention)]:
            raise ValueError(f"{folder}: it has an adapter of kv_b_proj ({latent[0]}), which what is cached goes "
                             "through, of whichever request it is; load it alone, or merge it")  # fmt: skip
        llm.model.choice.known[name] = identity(folder)


def identity(given: str | Path) -> bytes:
    """SHA-256 of an adapter's files."""
    folder = Path(given).expanduser()
    made = hashlib.sha256()
    for name in (FILE, TENSORS):
        with (folder / name).open("rb") as file:
            while data := file.read(CHUNK):
                made.update(data)
    return made.digest()
