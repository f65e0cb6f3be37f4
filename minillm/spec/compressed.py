"""Compressed attention: earlier positions are seen as entries, each of which stands for a block of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minillm.spec.attention import KV
from minillm.spec.norm import Norm
from minillm.spec.rope import Rope


@dataclass(frozen=True)
class EntryIndexer:
    """A query sees the `top_k` entries with the highest sum over heads h of w_h relu(q_h k) / sqrt(head_dim). k is
    computed like an entry, w from the token, and q from the latent of the attention's queries."""

    num_heads: int
    head_dim: int
    top_k: int


@dataclass(frozen=True)
class Entries:
    """One vector of `size` values for every `span` positions: sum_j softmax_j(W_gate x_j + b_j) * W x_j, with a softmax
    for each value, then `norm`, then the rotation of the first of these positions. A query sees all entries whose last
    position is not after it, or the best of them (`indexer`). `overlaps`: an entry also includes the `span` positions
    before, by matrices of their own.
    """

    span: int
    size: int
    norm: Norm
    overlaps: bool = False
    indexer: EntryIndexer | None = None

    window: ClassVar[None] = None  # entries of all of the past are kept

    @property
    def reach(self) -> int:
        """How many positions an entry is computed from."""
        return 2 * self.span if self.overlaps else self.span

    @property
    def kept(self) -> int:
        """How many values are cached for an entry."""
        return self.size + (self.indexer.head_dim if self.indexer else 0)

    @property
    def inputs(self) -> int:
        """How many values a position contributes to its entries."""
        return 2 * self.kept * (2 if self.overlaps else 1)


@dataclass(frozen=True)
class Compressed:
    """Compressed attention (DeepSeek-V4, 2026): all heads share one key, which is also their value. They see a `window`
    of positions, and `entries` that stand for blocks of earlier ones; each head has a sink, one more learned score
    without a value.

    q goes through a latent of `q_rank` values. Each head of q is normalised by `norm` without a weight, the key with
    one. The last rope.dim values of both are rotated, and the rotation is undone on the output of each head. Heads come
    in `groups`; each group is projected to `group_rank` values, and one matrix projects all groups to the output.
    """

    num_heads: int
    head_dim: int
    q_rank: int
    rope: Rope
    window: int
    norm: Norm
    groups: int
    group_rank: int
    entries: Entries | None = None

    kv: ClassVar[KV] = KV()  # its own
    indexer: ClassVar[None] = None  # of keys; entries may have one
    lender: ClassVar[None] = None

    @property
    def kept(self) -> int:
        """How many values are cached for a position while it is in the window."""
        return self.head_dim + (self.entries.inputs if self.entries else 0)
