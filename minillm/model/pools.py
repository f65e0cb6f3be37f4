"""What layers keep of many sequences, in blocks that any of them may be given (Kwon et al., arXiv:2309.06180).

Layers with the same window share block numbers: block i of such a group is the same `size` slots in each of its layers,
so one table per sequence and group says where all their keys lie. Recurrent layers keep a state per sequence in place
of keys; theirs is a group too, whose blocks hold one sequence's state. Who has which block is for the engine to know
(`engine/blocks.py`). The memory is not filled when it is taken, so that a system which gives pages as they are written
gives none for blocks that are never used.

A kind of layer is a class here. It takes in new positions (`put`), gives back old ones (`read`, or the memory itself
for `ops.paged_attention`), and copies a block (`copy`), which is what a fork of a sequence needs; nothing needs to be
done when a block is given up.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from minillm.model.compressed.rows import EntryPool, WindowPool
from minillm.model.recurrent.states import STATES, StateCache
from minillm.spec import GQA, MLA, Attention, Compressed, Decoder, Entries, Recurrent, index_dim

Group = int | None | Literal["state"]  # a window, None for layers without one, or recurrent layers


class KeyPool:
    """k `[1, K, slots, D]` and v `[1, K, slots, V]` of one layer, and what it chooses keys by."""

    def __init__(self, spec: GQA, blocks: int, size: int, dtype: torch.dtype, device: torch.device):
        self.size, shape = size, (1, spec.num_kv_heads, blocks * size)
        self.k = torch.empty((*shape, spec.head_dim), dtype=dtype, device=device)
        self.v = torch.empty((*shape, spec.v_dim), dtype=dtype, device=device)
        self.index = RowPool(index_dim(spec), blocks, size, dtype, device)

    @staticmethod
    def nbytes(spec: GQA, size: int, width: int) -> int:
        """Of one block, with values of `width` bytes."""
        return width * size * (spec.num_kv_heads * (spec.head_dim + spec.v_dim) + index_dim(spec))

    def put(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Store k and v `[1, K, N, D]` in slots, int64 `[1, N]`."""
        self.k.index_copy_(2, slots[0], k)
        self.v.index_copy_(2, slots[0], v)

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[1, K, S, D]` of slots, int64 `[S]`."""
        return self.k.index_select(2, slots), self.v.index_select(2, slots)

    def copy(self, source: int, target: int) -> None:
        """One block into another."""
        for each in (self.k, self.v):
            of, to = (each[:, :, block * self.size : (block + 1) * self.size] for block in (source, target))
            to.copy_(of)
        self.index.copy(source, target)


class RowPool:
    """A vector of `values` values of each position, `[1, slots, values]`."""

    def __init__(self, values: int, blocks: int, size: int, dtype: torch.dtype, device: torch.device):
        self.size = size
        self.rows = torch.empty((1, blocks * size, values), dtype=dtype, device=device)

    def put(self, new: Tensor, slots: Tensor) -> None:
        """Store `[1, N, values]` in slots, int64 `[1, N]`."""
        self.rows.index_copy_(1, slots[0], new)

    def read(self, slots: Tensor) -> Tensor:
        """`[1, S, values]` of slots, int64 `[S]`."""
        return self.rows.index_select(1, slots)

    def copy(self, source: int, target: int) -> None:
        """One block into another."""
        of, to = (self.rows[:, block * self.size : (block + 1) * self.size] for block in (source, target))
        to.copy_(of)


class LatentPool(RowPool):
    """What latent attention keeps of each position, `[1, slots, R + P]`, and what it chooses keys by."""

    def __init__(self, spec: MLA, blocks: int, size: int, dtype: torch.dtype, device: torch.device):
        super().__init__(spec.kv_rank + spec.rope.dim, blocks, size, dtype, device)
        self.index = RowPool(index_dim(spec), blocks, size, dtype, device)

    @staticmethod
    def nbytes(spec: MLA, size: int, width: int) -> int:
        """Of one block, with values of `width` bytes."""
        return width * size * (spec.kv_rank + spec.rope.dim + index_dim(spec))

    def copy(self, source: int, target: int) -> None:
        """One block into another."""
        super().copy(source, target)
        self.index.copy(source, target)


class StatePool(StateCache):
    """The states of a recurrent layer, a block each."""

    def __init__(self, spec: Recurrent, blocks: int, size: int, dtype: torch.dtype, device: torch.device):
        self.spec = spec
        self.state = torch.empty((blocks, STATES, *self.shape(spec, 1)[1:]), dtype=torch.float32, device=device)
        self.inputs = torch.empty((blocks, *self.of_inputs(spec)), dtype=dtype, device=device)

    @staticmethod
    def nbytes(spec: Recurrent, size: int, width: int) -> int:
        """Of one block, with inputs of `width` bytes."""
        return StateCache.nbytes(spec, 0, width)

    def of_block(self, block: int) -> StateCache:
        """One block's state, as the cache of a sequence."""
        found = copy(self)
        found.state, found.inputs = self.state[block : block + 1], self.inputs[block : block + 1]
        return found

    def copy(self, source: int, target: int) -> None:
        """One sequence's state into another's place."""
        self.state[target], self.inputs[target] = self.state[source], self.inputs[source]

    def clear(self, block: int) -> None:
        """What comes before the first position: nothing."""
        self.state[block].zero_()
        self.inputs[block].zero_()


class NoPool:
    """Of a layer that reads what another one keeps (`spec.KV.layer`)."""

    def __init__(self, *_: Any):
        pass

    @staticmethod
    def nbytes(spec: GQA, size: int, width: int) -> int:
        return 0

    def copy(self, source: int, target: int) -> None:
        """Nothing: what there is, the other layer copies."""


AnyPool = NoPool | KeyPool | LatentPool | WindowPool | EntryPool | StatePool
POOLS: dict[type, type[AnyPool]] = {
    GQA: KeyPool,
    MLA: LatentPool,
    Compressed: WindowPool,
    Entries: EntryPool,
    **dict.fromkeys(get_args(Recurrent), StatePool),
}


def kind(mixer: Attention | Entries | Recurrent) -> Any:
    """What a mixer keeps."""
    return NoPool if isinstance(mixer, GQA) and mixer.kv.layer is not None else POOLS[type(mixer)]


def group_of(mixer: Attention | Entries | Recurrent) -> Group:
    """The group that a mixer belongs to."""
    return "state" if isinstance(mixer, Recurrent) else mixer.window


def bytes_of(decoder: Decoder, size: int, dtype: torch.dtype) -> dict[Group, int]:
    """Of one block of each group, in all its layers together."""
    found: dict[Group, int] = {}
    for mixer in decoder.mixers:
        made: Any = kind(mixer)
        group = group_of(mixer)
        found[group] = found.get(group, 0) + made.nbytes(mixer, size, dtype.itemsize)
    return found


class Pools:
    """The memory of all layers, with `blocks` of each group. `layers` has None for one that looks at no other
    positions, and several for one that does so in several ways."""

    def __init__(
        self, decoder: Decoder, blocks: Mapping[Group, int], size: int, dtype: torch.dtype, device: torch.device
    ):
        self.size = size
        self.groups: dict[Group, list[Any]] = {}
        self.layers: list[Any] = []
        for layer in decoder.layers:
            made = []
            for mixer in layer.mixers:
                group = group_of(mixer)
                made.append(kind(mixer)(mixer, blocks[group], size, dtype, device))
                self.groups.setdefault(group, []).append(made[-1])
            self.layers.append(tuple(made) if len(made) > 1 else next(iter(made), None))

    def of(self, group: Group) -> list[Any]:
        """Those of a group."""
        return self.groups.get(group, [])

    def copy(self, group: Group, source: int, target: int) -> None:
        """One block of a group into another, in all its layers."""
        for each in self.of(group):
            each.copy(source, target)
