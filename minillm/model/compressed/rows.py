"""The cache of compressed attention. Everything is stored by position, so nothing needs to be undone when a sequence is
rewound: what a position has written is overwritten.

For the positions in the window it holds keys and, next to them, the inputs of future entries. An entry is stored with
the last of its positions, because it depends on all tokens up to that one and on none after it: whoever shares the
block of this position shares the entry.

Shapes: B rows, S positions, M entries, C values of a position (`spec.Compressed.kept`), W of an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from minillm.spec import Compressed, Entries

Locate = Callable[[Tensor], Tensor]  # positions, int64 [B, S] -> their slots; anything for those below 0


class Rows(Protocol):
    """What a pass does with the past of its rows."""

    def past(self, position: Tensor) -> Tensor:
        """The stored values of positions `[B, S]`, `[B, S, C]`; undefined for positions that were never put."""

    def put(self, values: Tensor, position: Tensor) -> None:
        """Store the values `[B, T, C]` of consecutive positions `[B, T]`."""

    def entries(self) -> Tensor:
        """All entries in order, `[B, M, W]`; undefined for those that are not computed yet."""

    def add(self, made: Tensor, last: Tensor, whole: Tensor) -> None:
        """Store those of the entries `[B, M, W]` that are `whole`, bool `[B, M]`, by the `last` position of each."""


class WindowCache:
    """`[B, slots, C]`; position p of a row lies in slot p mod slots, counted from its own first token."""

    ring = None

    def __init__(self, spec: Compressed, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        self.values = torch.zeros((batch, min(spec.window, capacity), spec.kept), dtype=dtype, device=device)

    @staticmethod
    def nbytes(spec: Compressed, capacity: int, width: int) -> int:
        """Of one row, with values of `width` bytes."""
        return width * min(spec.window, capacity) * spec.kept


class EntryCache:
    """`[B, M + 1, W]`; the last place takes what is not stored."""

    ring = None

    def __init__(self, spec: Entries, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        self.span = spec.span
        self.values = torch.zeros((batch, capacity // spec.span + 1, spec.kept), dtype=dtype, device=device)

    @staticmethod
    def nbytes(spec: Entries, capacity: int, width: int) -> int:
        """Of one row, with values of `width` bytes."""
        return width * (capacity // spec.span + 1) * spec.kept


class CachedRows:
    """`Rows` of a cache."""

    def __init__(self, window: WindowCache, entries: EntryCache | None):
        self.window, self.made = window, entries

    def past(self, position: Tensor) -> Tensor:
        values = self.window.values
        at = position % values.shape[1]
        return values.gather(1, at.unsqueeze(-1).expand(-1, -1, values.shape[2]))

    def put(self, values: Tensor, position: Tensor) -> None:
        into = self.window.values
        values, position = values[:, -into.shape[1] :], position[:, -into.shape[1] :]
        into.scatter_(1, (position % into.shape[1]).unsqueeze(-1).expand_as(values), values)

    def entries(self) -> Tensor:
        assert self.made is not None
        return self.made.values[:, :-1]

    def add(self, made: Tensor, last: Tensor, whole: Tensor) -> None:
        assert self.made is not None
        into = self.made.values
        at = torch.where(whole, last // self.made.span, into.shape[1] - 1)
        into.scatter_(1, at.unsqueeze(-1).expand_as(made), made)


class WindowPool:
    """`[slots, C]` of many sequences."""

    def __init__(self, spec: Compressed, blocks: int, size: int, dtype: torch.dtype, device: torch.device):
        self.size = size
        self.values = torch.empty((blocks * size, spec.kept), dtype=dtype, device=device)

    @staticmethod
    def nbytes(spec: Compressed, size: int, width: int) -> int:
        """Of one block, with values of `width` bytes."""
        return width * size * spec.kept

    def copy(self, source: int, target: int) -> None:
        """One block into another."""
        of, to = (self.values[block * self.size : (block + 1) * self.size] for block in (source, target))
        to.copy_(of)


class EntryPool:
    """`[blocks * each + 1, W]`, where `each` entries may end in a block; the last place takes what is not stored."""

    def __init__(self, spec: Entries, blocks: int, size: int, dtype: torch.dtype, device: torch.device):
        self.size, self.span, self.each = size, spec.span, -(-size // spec.span)
        self.values = torch.empty((blocks * self.each + 1, spec.kept), dtype=dtype, device=device)

    @staticmethod
    def nbytes(spec: Entries, size: int, width: int) -> int:
        """Of one block, with values of `width` bytes."""
        return width * -(-size // spec.span) * spec.kept

    def slot(self, slot: Tensor) -> Tensor:
        """The place of an entry whose last position has this slot."""
        return slot // self.size * self.each + slot % self.size // self.span

    def copy(self, source: int, target: int) -> None:
        """One block into another."""
        of, to = (self.values[block * self.each : (block + 1) * self.each] for block in (source, target))
        to.copy_(of)


class PooledRows:
    """`Rows` of sequences; `window` and `whole` locate their positions, `whole` up to position `most`."""

    def __init__(self, pool: WindowPool, entries: EntryPool | None, window: Locate, whole: Locate, most: int):
        self.pool, self.made, self.window, self.whole, self.most = pool, entries, window, whole, most

    def past(self, position: Tensor) -> Tensor:
        return self.pool.values[self.window(position.clamp(min=0))]

    def put(self, values: Tensor, position: Tensor) -> None:
        self.pool.values.index_copy_(0, self.window(position).flatten(), values.flatten(0, 1))

    def entries(self) -> Tensor:
        assert self.made is not None
        span = self.made.span
        last = torch.arange(self.most // span, device=self.made.values.device) * span + span - 1
        return self.made.values[self.made.slot(self.whole(last[None]))]

    def add(self, made: Tensor, last: Tensor, whole: Tensor) -> None:
        assert self.made is not None
        slots = self.made.slot(self.whole(last.clamp(0, self.most - 1)))
        slots = torch.where(whole, slots, len(self.made.values) - 1)
        self.made.values.index_copy_(0, slots.flatten(), made.flatten(0, 1))
