"""The files that makers give out before anybody converts them: `params.json` with

    consolidated.00.pth, consolidated.01.pth, …    what each of several processes held: a part of every matrix
    consolidated.safetensors, or consolidated.safetensors.index.json with its shards    whole tensors

A matrix that is cut by its outputs is whole with its parts one under the other, one cut by its inputs side by side;
norms and frequencies are in every file. The embedding was cut by its width at first and by its rows later: the norm
says which (fairscale.nn.model_parallel: ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from minillm.guard.files import is_there
from minillm.weights.pytorch.torchfile import InStorage
from minillm.weights.source import InFile

PARAMS = "params.json"
SHARD = re.compile(r"consolidated\.(\d\d)\.pth")
FIRST = "consolidated.00.pth"
PLAIN = ("consolidated.safetensors", "consolidated.safetensors.index.json")
EMBEDDING, NORM = "tok_embeddings.weight", "norm.weight"
UNDER = ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight", "feed_forward.w1.weight",
         "feed_forward.w3.weight", "output.weight")  # fmt: skip
BESIDE = ("attention.wo.weight", "feed_forward.w2.weight")
SAME = (NORM, "rope.freqs")


def entry(folder: Path) -> Path | None:
    """What a folder's weights begin with in this layout; None without any, or without params.json. Raises ValueError
    where something that is no file has that name."""
    if not is_there(folder / PARAMS):
        return None
    return next((folder / name for name in (FIRST, *PLAIN) if is_there(folder / name)), None)


def is_one(path: Path | None) -> bool:
    """Whether what a folder's weights begin with is in this layout."""
    return path is not None and path.name in (FIRST, *PLAIN)


def shards(folder: Path) -> list[str]:
    """The files of parts, in order. Raises ValueError where one between them is missing."""
    found = sorted(path.name for path in folder.iterdir() if SHARD.fullmatch(path.name))
    if missing := [name for i in range(len(found)) if (name := f"consolidated.{i:02}.pth") not in found]:
        raise ValueError(f"{folder}: {missing[0]} is missing, a part of every matrix; download it")
    return found


@dataclass(frozen=True)
class Joined:
    """A tensor in parts, with the methods of `source.InFile`: along `axis` one after the other, or with None the same
    in every part."""

    name: str
    parts: tuple[InFile | InStorage, ...]
    axis: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.parts[0].shape
        if self.axis is None:
            return shape
        joined = sum(part.shape[self.axis] for part in self.parts)
        return (*shape[: self.axis], joined, *shape[self.axis + 1 :])

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def word(self) -> str:
        return self.parts[0].word

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def fresh(self) -> Joined:
        """The same tensor, nothing of which has been read."""
        return replace(self, parts=tuple(part.fresh() for part in self.parts))

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Values start … stop - 1. Raises ValueError where parts that are the same are not."""
        stop = math.prod(self.shape) if stop is None else stop
        if self.axis is None:
            found = [part.values(start, stop) for part in self.parts]
            if not all(torch.equal(found[0], each) for each in found[1:]):
                raise ValueError(f"{self.name} is not the same in all files; download them again from one place")
            return found[0]
        if self.axis == 0:
            return torch.cat(self._under(start, stop))
        columns = self.shape[1]
        first, last = start // columns, -(-stop // columns)
        read = [part.values(first * part.shape[1], last * part.shape[1]).view(-1, part.shape[1]) for part in self.parts]
        return torch.cat(read, dim=1).flatten()[start - first * columns : stop - first * columns]

    def _under(self, start: int, stop: int) -> list[Tensor]:
        found, at = [], 0
        for part in self.parts:
            size = math.prod(part.shape)
            if at < stop and start < at + size:
                found.append(part.values(max(start - at, 0), min(stop - at, size)))
            at += size
        return found

    def fill(self, into: Tensor, start: int = 0) -> None:
        """Read into a contiguous tensor of this type on the CPU, which says how many values from `start` on."""
        into.copy_(self.values(start, start + into.numel()).view(into.shape))


def joined(found: Sequence[Mapping[str, InFile | InStorage]]) -> Mapping[str, InFile | InStorage | Joined]:
    """The tensors of all files by name. Raises ValueError for files that are not parts of one model."""
    if len(found) == 1:
        return found[0]
    for number, each in enumerate(found):
        if odd := sorted(set(found[0]) ^ set(each)):
            raise ValueError(f"{odd[0][:80]!r} is not in both consolidated.00.pth and consolidated.{number:02}.pth")
    return {name: _joined(name, tuple(each[name] for each in found), found[0].get(NORM)) for name in found[0]}


def _joined(name: str, parts: tuple[InFile | InStorage, ...], norm: InFile | InStorage | None) -> Joined:
    shape, axis = parts[0].shape, _axis(name, parts, norm)
    if {(part.shape, part.dtype) for part in parts} != {(shape, parts[0].dtype)}:
        found = ", ".join(f"{part.word} {list(part.shape)}" for part in parts[:4])
        raise ValueError(f"{name} is {found} in the files, expected equal parts; download them again from one place")
    return Joined(name, parts, axis)


def _axis(name: str, parts: tuple[InFile | InStorage, ...], norm: InFile | InStorage | None) -> int | None:
    if name.endswith(SAME) and len(parts[0].shape) == 1:
        return None
    if len(parts[0].shape) == 2:
        if name == EMBEDDING and norm is not None:
            return 0 if parts[0].shape[1:] == norm.shape else 1
        if name.endswith(UNDER):
            return 0
        if name.endswith(BESIDE):
            return 1
    raise ValueError(
        f"{name[:80]} is cut in {len(parts)} parts, and how is not known; give the model in another layout"
    )
