"""Attention that sees blocks of positions as one entry each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minillm.spec.attention import KV
from minillm.spec.norm import Norm
from minillm.spec.rope import Rope


@dataclass(frozen=True)
class EntryIndexer:
    """A query sees the `top_k` entries with the best sum over small heads of w_h relu(q_h k) / sqrt(head_dim), where
    k of an entry is made as entries are, w of the token, and q of the latent of queries."""

    num_heads: int
    head_dim: int
    top_k: int


@dataclass(frozen=True)
class Entries:
    """Of every `span` positions one vector of `size` values: sum_j softmax_j(W_gate x_j + b_j) * W x_j, each value with
    weights of its own, then `norm`, turned as the first of these positions. A query sees those that lie whole before
    it or end with it, or the best of them (`indexer`). `overlaps`: each is made of the `span` positions before as well,
    with matrices of their own.
    """

    span: int
    size: int
    norm: Norm
    overlaps: bool = False
    indexer: EntryIndexer | None = None

    window: ClassVar[None] = None  # entries of all of the past are kept

    @property
    def reach(self) -> int:
        """The positions that one is made of."""
        return 2 * self.span if self.overlaps else self.span

    @property
    def kept(self) -> int:
        """Values of one."""
        return self.size + (self.indexer.head_dim if self.indexer else 0)

    @property
    def inputs(self) -> int:
        """Values that a position gives to those that it is part of."""
        return 2 * self.kept * (2 if self.overlaps else 1)


@dataclass(frozen=True)
class Compressed:
    """Compressed attention (DeepSeek-V4, 2026): one key for all heads, which is their value too, of a `window` of
    positions and of `entries` that stand for blocks of all positions before; each head has one learned score more, that
    gives nothing to the sum.

    q goes through a latent of `q_rank` values; each of its heads is normalised, without a factor, as `norm` says, and
    so is, with one, the key. The last rope.dim values of both turn, and those of what a head gives are turned back.
    Heads lie in `groups`, each of which becomes `group_rank` values before all become the output.
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
        """Values that are kept of a position while the window sees it."""
        return self.head_dim + (self.entries.inputs if self.entries else 0)
