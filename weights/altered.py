"""Tensors of a checkpoint that are to be written with other values, or in another type: they have the methods of
`source.InFile`, and whatever writes a checkpoint takes them for what lies in a file."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor

from minillm.weights.checkpoint import Checkpoint, Stored, TensorInfo
from minillm.weights.load import BLOCK_VALUES, laid
from minillm.weights.rows import numbers
from minillm.weights.rules import Destination
from minillm.weights.source import Kept
from minillm.weights.tensorfile import NAMES, blocks


class Change(Protocol):
    """What becomes of rows of a parameter."""

    def __call__(self, rows: Tensor, start: int, /) -> Tensor:
        """fp32 `[n, …]`, the rows from `start` on, -> the new ones, fp32; of `[E, O, I]` rows are those of all experts
        one under the other. What is given stays as it is."""
        ...


Seen = Callable[[Tensor, Tensor, Tensor], None]  # is told values before, exact ones, and those in the type that is kept


class Altered(Kept):
    """A stored tensor, whose rows go `to` a parameter, with a change of these, in a type of its own. A block of rows is
    in memory, or all of them where they lie otherwise in the tensor."""

    title = None

    def __init__(self, stored: Stored, to: Destination, dtype: torch.dtype, change: Change | None, seen: Seen | None):
        super().__init__()
        self.stored, self.to, self.dtype, self.change, self.seen = stored, to, dtype, change, seen
        self.shape, self.nbytes, self.word = stored.shape, stored.nbytes, NAMES[dtype]

    def fresh(self) -> Altered:
        """The same tensor, nothing of which has been read."""
        return Altered(self.stored.fresh(), self.to, self.dtype, self.change, self.seen)

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Values start … stop - 1 of all in a row."""
        if self.to.layout is not None:
            return super().values(start, stop)
        width, stop = math.prod(self.to.shape[1:]), math.prod(self.shape) if stop is None else stop
        first, last = start // width, -(-stop // width)
        before = numbers(self.stored, self.to, first, last)
        return self._made(before, first, slice(start - first * width, stop - first * width))

    def fill(self, into: Tensor, start: int = 0) -> None:
        into.copy_(self.values(start, start + into.numel()).view(into.shape))

    def _read(self) -> Tensor:
        assert self.to.layout is not None
        rows = laid(self.stored, self.to)
        assert rows is not None
        made = torch.empty(rows.shape, dtype=self.dtype)
        for first, last in blocks(len(rows), max(BLOCK_VALUES // math.prod(rows.shape[1:]), 1)):
            made[first:last] = self._made(rows[first:last], first).view(-1, *rows.shape[1:])
        return self.to.layout.restore(made).flatten()

    def _made(self, before: Tensor, first: int, wanted: slice = slice(None)) -> Tensor:
        """Of rows from the tensor's row `first` on the values that are wanted, in a row."""
        exact = before if self.change is None else self.change(before, self.to.start + first)
        before, exact = before.flatten()[wanted], exact.flatten()[wanted]
        made = exact.to(self.dtype)
        if self.seen is not None:
            self.seen(before, exact, made)
        return made


def altered(checkpoint: Checkpoint, made: Mapping[str, Altered]) -> Checkpoint:
    """The checkpoint with some tensors altered."""
    found = copy.copy(checkpoint)
    found.stored = {**checkpoint.stored, **cast(Mapping[str, Stored], made)}  # whose methods they have
    told = {name: TensorInfo(checkpoint.info[name].file, each.shape, each.word) for name, each in made.items()}
    found.info = {**checkpoint.info, **told}
    return found
