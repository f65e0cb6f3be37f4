"""What layers are told of a pass (`Step`), and of one over tokens of many sequences, whatever their lengths: one token
of each that is being decoded, and pieces of those that are being read.

All tokens lie one behind the other, as if they were one sequence: `[1, N, E]`. Norms, products and experts take each
token by itself and need not know. Only attention and recurrent layers look at other tokens: they take the single ones
together, through their tables of blocks, and each piece by itself, with what its sequence has before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from minillm.model.pools import Group
from minillm.ops.paged import Paged
from minillm.ops.visibility import Visibility
from minillm.spec import Rope


@dataclass(frozen=True)
class Piece:
    """Several tokens of one sequence."""

    tokens: slice  # which of the pass they are
    start: int  # the position of the first
    visible: Mapping[Group, Visibility]
    keys: Mapping[Group, Tensor]  # int64 [S]: the slots of the keys that they may see, in the order of `visible`
    state: int | None  # the block of its state


@dataclass(frozen=True)
class Inserted:
    """Tokens of a pass, int64 `[n]`, that have other embeddings than their rows of the table, `[n, E]`; `deep` are
    added to what leaves the first layers there, `[n, E]` each. `told_as`: what they are for layers that are told of
    tokens (`spec.per_layer`), if not what they are."""

    at: Tensor
    embeddings: Tensor
    deep: tuple[Tensor, ...] = ()
    told_as: int | None = None

    def told(self, tokens_1N: Tensor) -> Tensor:
        """The tokens that layers are told of."""
        return tokens_1N if self.told_as is None else tokens_1N.index_fill(1, self.at, self.told_as)

    def placed(self, x_1NE: Tensor) -> Tensor:
        """What the first layer is given."""
        return x_1NE.index_copy(1, self.at, self.embeddings[None].to(x_1NE))

    def deepened(self, x_1NE: Tensor, index: int) -> Tensor:
        """What the layer behind layer `index` is given."""
        return x_1NE.index_add(1, self.at, self.deep[index][None].to(x_1NE)) if index < len(self.deep) else x_1NE


@dataclass(frozen=True)
class Ragged:
    """`singles` tokens of a sequence each, then the pieces; `slots` are where the keys of all tokens go. `turning`: the
    coordinate that rotates each token, int64 `[N]`, or each of its pairs, `[N, P]`, where that is not its position."""

    singles: int
    paged: Mapping[Group, Paged]  # of the single ones
    position_N: Tensor  # int64: of the single ones
    states: Tensor | None  # int64 [singles]: the blocks of their states
    slots: Mapping[Group, Tensor]  # int64 [1, N]
    pieces: tuple[Piece, ...] = ()
    inserted: Inserted | None = None
    turning: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """The tokens from position `start` on, and what is computed once for all layers."""

    start: int
    rotary: dict[Rope, tuple[Tensor, Tensor]]  # cos and sin `[B or 1, T, dim/2]`
    visible: dict[int | None, Visibility]  # by window
    slots: dict[int | None, Tensor | None]  # by window, as `Visibility.slots` gives them
    positions: Tensor | None = None  # int64 `[B or 1, T]`: those of the tokens
    first: int | Tensor = 0  # the position of the first token, int64 `[B]` where only the device knows it
    real: Tensor | None = None  # bool `[B, T, 1]`, false where a row is padded; None where none is
    embedded: Tensor | None = None  # `[B, T, E]`: what the first layer is given, where others look at it too
    per_layer: Tensor | None = None  # `[B, T, layers, P]`: what each layer is told of a token
    kv: dict[int, Any] = field(default_factory=dict)  # keys and values, or the pool of them, that other layers read too
    chosen: dict[int, Any] = field(default_factory=dict)  # what queries see, by layers whose choice counts in others
    ragged: Ragged | None = None  # where the tokens are of many sequences
    tokens: Tensor | None = None  # int64 `[B, T]`
