"""What layers keep of the past, preallocated, one cache per layer; owned by the caller of the model.

A layer with a sliding window keeps a ring of `window` slots: position p lives in slot p mod window, so that decoding
overwrites the one position that has just left the window. Rows of a batch are aligned at their end: row b starts with
`padding[b]` positions that no query of that row ever sees. A layer may keep nothing and read another's keys and values
(`spec.KV.layer`).
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from minillm.guard import memory
from minillm.model.compressed.rows import EntryCache, WindowCache
from minillm.model.recurrent.states import StateCache
from minillm.spec import GQA, MLA, Attention, Compressed, Decoder, Entries, Recurrent, index_dim

LARGE = 2**26  # bytes that are compared with the memory that is left


class LayerCache:
    """k `[B, K, slots, D]` and v `[B, K, slots, V]` of one layer, and what it chooses keys by; slots = min(capacity,
    window)."""

    def __init__(self, spec: GQA, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        self.ring = spec.window if spec.window and spec.window < capacity else None
        shape = (batch, spec.num_kv_heads, self.ring or capacity)
        self.k = torch.zeros((*shape, spec.head_dim), dtype=dtype, device=device)
        self.v = torch.zeros((*shape, spec.v_dim), dtype=dtype, device=device)
        self.index = Rows(index_dim(spec), batch, self.ring or capacity, dtype, device)

    @staticmethod
    def nbytes(spec: GQA, capacity: int, width: int) -> int:
        """Of one row, with values of `width` bytes."""
        values = spec.num_kv_heads * (spec.head_dim + spec.v_dim) + index_dim(spec)
        return width * min(spec.window or capacity, capacity) * values

    def filled(self, end: int) -> tuple[Tensor, Tensor]:
        """The keys and values of the positions before `end`, as far as they are kept: views `[B, K, S, D]`."""
        return self.k[:, :, :end], self.v[:, :, :end]

    def put(self, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v `[B, K, 1, D]` in each row's slot, int64 `[B, 1]`; returns all slots, `[B, K, slots, D]`."""
        at = slots[:, None, :, None]
        return self.k.scatter_(2, at.expand_as(k), k), self.v.scatter_(2, at.expand_as(v), v)

    def update(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Store k and v `[B, K, T, D]` of positions start .. start + T - 1; returns all keys and values that these
        positions may need, `[B, K, S, D]`, in the order of `Visibility.key_positions`."""
        end = start + k.shape[2]
        if self.ring is None:
            self.k[:, :, start:end] = k
            self.v[:, :, start:end] = v
            return self.filled(end)
        if k.shape[2] == 1:
            slot = start % self.ring
            self.k[:, :, slot] = k[:, :, 0]
            self.v[:, :, slot] = v[:, :, 0]
            return self.filled(end)
        past = torch.arange(start - min(start, self.ring - 1), start, device=k.device) % self.ring
        k, v = torch.cat((self.k[:, :, past], k), dim=2), torch.cat((self.v[:, :, past], v), dim=2)
        kept = min(k.shape[2], self.ring)
        slots = torch.arange(end - kept, end, device=k.device) % self.ring
        self.k[:, :, slots], self.v[:, :, slots] = k[:, :, -kept:], v[:, :, -kept:]
        return k, v


class Rows:
    """A vector of `size` values of each position, `[B, capacity, size]`."""

    def __init__(self, size: int, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        self.rows = torch.zeros((batch, capacity, size), dtype=dtype, device=device)

    def put(self, new: Tensor, slots: Tensor) -> Tensor:
        """Store `[B, 1, size]` in each row's slot, int64 `[B, 1]`; returns all slots, `[B, capacity, size]`."""
        return self.rows.scatter_(1, slots[:, :, None].expand_as(new), new)

    def update(self, new: Tensor, start: int) -> Tensor:
        """Store `[B, T, size]` of positions start .. start + T - 1; returns all so far, `[B, S, size]`."""
        end = start + new.shape[1]
        self.rows[:, start:end] = new
        return self.rows[:, :end]


class LatentCache(Rows):
    """What latent attention keeps of each position: its latent and its rotary key, `[B, capacity, R + P]`; and what it
    chooses keys by."""

    ring = None

    def __init__(self, spec: MLA, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        super().__init__(spec.kv_rank + spec.rope.dim, batch, capacity, dtype, device)
        self.index = Rows(index_dim(spec), batch, capacity, dtype, device)

    @staticmethod
    def nbytes(spec: MLA, capacity: int, width: int) -> int:
        """Of one row, with values of `width` bytes."""
        return width * capacity * (spec.kv_rank + spec.rope.dim + index_dim(spec))


class NoCache:
    """Of a layer that reads what another one keeps."""

    ring = None

    def __init__(self, *_: Any):
        pass

    @staticmethod
    def nbytes(spec: GQA, capacity: int, width: int) -> int:
        return 0


AnyCache = LayerCache | LatentCache | WindowCache | EntryCache | StateCache | NoCache
KINDS: dict[type, type[AnyCache]] = {
    GQA: LayerCache,
    MLA: LatentCache,
    Compressed: WindowCache,
    Entries: EntryCache,
    **dict.fromkeys(get_args(Recurrent), StateCache),
}


def kind(mixer: Attention | Entries | Recurrent) -> type[AnyCache]:
    """What a mixer keeps of the past."""
    borrows = isinstance(mixer, GQA) and mixer.kv.layer is not None
    return NoCache if borrows else KINDS[type(mixer)]


class Cache:
    """The caches of all layers, the number of positions they hold, and each row's left padding."""

    def __init__(
        self,
        spec: Decoder,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        padding: list[int] | None = None,
    ):
        self.spec, self.dtype, self.device = spec, dtype, torch.device(device)
        self.length = 0
        self.prompt_length = 0  # of a prompt that comes in pieces: dynamic rotary scaling goes by the whole
        self.graph: Any = None  # a decode step over this memory, once it is recorded (`engine/graphs.py`)
        self._shape(batch, capacity, padding)
        self.layers = [self._layer(index) for index in range(len(spec.layers))]

    def _shape(self, batch: int, capacity: int, padding: list[int] | None) -> None:
        self.batch, self.capacity = batch, capacity
        self.padding = padding if padding and any(padding) else None
        self.padding_B = torch.tensor(padding, device=self.device) if self.padding else None
        kinds: Any = [(kind(mixer), mixer) for mixer in self.spec.mixers]
        needed = batch * sum(each.nbytes(mixer, capacity, self.dtype.itemsize) for each, mixer in kinds)
        if self.device.type == "cpu" and needed > LARGE:
            remedy = "ask for fewer new tokens, a shorter prompt or a smaller batch"
            memory.refuse(needed, f"a cache of {batch} x {capacity:,} positions", remedy)

    def _layer(self, index: int) -> AnyCache | tuple[AnyCache, ...] | None:
        """None of a layer that looks at no other positions, several of one that does so in several ways."""
        mixers: Any = self.spec.layers[index].mixers
        made = tuple(kind(mixer)(mixer, self.batch, self.capacity, self.dtype, self.device) for mixer in mixers)
        return made if len(made) > 1 else next(iter(made), None)
