"""Which keys the queries of one forward pass may see: what attention needs to know of the past, computed once for all
layers with the same window.

A query sees itself and what lies before it, with a window W at most W keys in all. Rows of a batch are aligned at their
end: row b starts with `padding[b]` positions that no query of that row ever sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from minillm.spec import Chunk


@dataclass(frozen=True)
class Visibility:
    """`count` queries at positions start, start + 1, …, and keys where `key_positions` says. `window` is None where it
    never gets to cut anything off; a cache with one is a ring of so many slots.

    With `position_B`, int64 `[B]`, there is one query per row and only the device knows where. Then `start` is the last
    position that the cache has room for, all slots of the cache are keys, and nothing here is a number that changes
    from step to step, so that a recorded graph stays valid. `lengths_B`, int32 `[B]`, are then the positions that each
    row has, its query's included.

    With `starts_BT`, int64 `[B, T]`, rows hold several documents one after the other, and a query sees nothing before
    the position where its own begins. That is for training: `start` is 0 then, and there is no padding.

    With a `Chunk` for a window `starts_BT` is where the chunk of each query begins, as its row or document counts.

    With `last_T`, int64 `[T]`, a query sees the positions behind it too, up to this one, which is among the queries'.

    With `chosen`, bool `[B or 1, 1 or K, T, S]`, a query sees those keys alone, of what it may see: by an indexer, for
    the query heads of each kv head if there are K. Nothing else here knows of it but `mask`.
    """

    start: int
    count: int
    window: int | None
    padding_B: Tensor | None
    device: torch.device
    position_B: Tensor | None = None
    starts_BT: Tensor | None = None
    last_T: Tensor | None = None
    chosen: Tensor | None = None
    lengths_B: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        lengths = None if self.position_B is None else (self.position_B + 1).int()
        object.__setattr__(self, "lengths_B", lengths)  # now, once for all layers
        if isinstance(self.window, Chunk):
            object.__setattr__(self, "starts_BT", self._chunks(int(self.window)))

    def _chunks(self, size: int) -> Tensor:
        """Where the chunk of each query begins, int64 `[B or 1, T]`."""
        if self.position_B is None:
            queries = torch.arange(self.start, self.start + self.count, device=self.device)[None]
        else:
            queries = self.position_B[:, None]
        origin = self.starts_BT if self.padding_B is None else self.padding_B[:, None]
        origin = torch.zeros_like(queries) if origin is None else origin
        return origin + (queries - origin) // size * size

    @property
    def ring(self) -> bool:
        """Whether key s is slot s of a ring and not the one at position first_key + s."""
        return self.window is not None and self.count == 1

    @property
    def most(self) -> int:
        """How many keys a query may see."""
        end = self.start + self.count
        return end - self.first_key if self.last_T is not None else min(end, self.window or end)

    @property
    def first_key(self) -> int:
        """The position of the first key."""
        return 0 if self.window is None or self.ring else self.start - min(self.start, self.window - 1)

    @cached_property
    def key_positions(self) -> Tensor:
        """The position of each key that a cache returns for these queries: int64 `[S]`, of a ring with `position_B`
        `[B, 1, 1, S]`, negative where a slot is still empty."""
        end = self.start + self.count
        if not self.ring:
            return torch.arange(self.first_key, end, device=self.device)
        assert self.window is not None
        slots = torch.arange(min(end, self.window), device=self.device)
        return self._query - (self._query - slots) % self.window

    @property
    def _query(self) -> int | Tensor:
        """The position of the only query, with `position_B` `[B, 1, 1, 1]`."""
        return self.start if self.position_B is None else self.position_B.view(-1, 1, 1, 1)

    def slots(self) -> Tensor | None:
        """The cache's slot of each query's own position, int64 `[1, T]`, with `position_B` `[B, 1]`; None where a ring
        takes several at once, which may overwrite what they need."""
        if self.position_B is not None:
            return (self.position_B if self.window is None else self.position_B % self.window)[:, None]
        if self.window is None:
            return torch.arange(self.start, self.start + self.count, device=self.device)[None]
        return torch.full((1, 1), self.start % self.window, device=self.device) if self.ring else None

    @cached_property
    def spans(self) -> tuple[Tensor, Tensor]:
        """The positions of the first and the last key that each query sees, int64 `[T]` each, or `[B, T]` with padding,
        `position_B` or `starts_BT`; a padded one sees itself."""
        if self.position_B is None:
            last = torch.arange(self.start, self.start + self.count, device=self.device)
        else:
            last = self.position_B[:, None]
        first = torch.zeros_like(last) if self.window is None else (last - self.window + 1).clamp(min=0)
        if self.last_T is not None:
            return first, self.last_T
        if self.starts_BT is not None:
            return torch.maximum(first, self.starts_BT), last.expand_as(self.starts_BT)
        if self.padding_B is None:
            return first, last
        last = last.expand(len(self.padding_B), -1)
        return torch.minimum(torch.maximum(first, self.padding_B[:, None]), last), last

    @cached_property
    def distances(self) -> Tensor:
        """Key position less query position, fp32 `[T, S]`, with `position_B` `[B, 1, 1, 1, S]`."""
        if self.position_B is not None:
            return (self.key_positions - self.position_B.view(-1, 1, 1, 1)).float().unsqueeze(1)
        queries = torch.arange(self.start, self.start + self.count, device=self.device)
        return (self.key_positions - queries[:, None]).float()

    @cached_property
    def mask(self) -> Tensor | None:
        """True where a query sees a key, bool `[T, S]`, with padding, `position_B` or `starts_BT` `[B, 1, T, S]`, or
        `chosen`; None where nothing but the future is hidden from all queries, or from the only one nothing.

        A padded position sees itself: its output is never used, but a row with nothing to see would be NaN and spread.
        """
        if self.chosen is not None:
            return self.chosen
        end = self.start + self.count
        fresh = self.start == 0 and (self.window is None or end <= self.window) and self.last_T is None
        static = self.position_B is not None
        if not static and self.padding_B is None and self.starts_BT is None and (self.count == 1 or fresh):
            return None
        queries = self._query if static else torch.arange(self.start, end, device=self.device)[:, None]
        keys = self.key_positions
        seen = (keys <= queries) & (keys >= 0) if static else keys <= queries
        if self.last_T is not None:
            seen = keys <= self.last_T[:, None]
        if self.window is not None:
            seen &= keys > queries - self.window
        if self.starts_BT is not None:
            return seen & (keys >= self.starts_BT[:, None, :, None])
        if self.padding_B is None:
            return seen
        return (seen & (keys >= self.padding_B[:, None, None, None])) | (keys == queries)

    @property
    def causal(self) -> bool:
        """Whether there is no mask because hiding the future is all there is to do."""
        return self.count > 1 and self.mask is None
