"""Indexers: small heads of their own that choose which keys attention looks at (DeepSeek-V3.2, arXiv:2512.02556)."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.spec.norm import LayerNorm, Norm
from minillm.spec.rope import RopeLayout


@dataclass(frozen=True)
class Indexer:
    """A query sees only the `top_k` visible keys with the highest sum over h of w_h relu(q_h k).

    k is one vector of head_dim values per position, `norm` of W x; q has num_heads heads, computed from the latent of
    the attention's queries; w = W x. The first values of q and k, or the `last`, are rotated by the attention's angles,
    in pairs of `layout`. Scores are divided by sqrt(head_dim num_heads).
    """

    num_heads: int
    head_dim: int
    top_k: int
    norm: LayerNorm
    layout: RopeLayout = "half"
    last: bool = False

    @property
    def most(self) -> int:
        """How many keys a query sees."""
        return self.top_k


@dataclass(frozen=True)
class BlockIndexer:
    """All query heads of a kv head see the same `top_k` blocks of `size` positions (MiniMax-M3, 2026): the `local` last
    ones, which end with the query's own, and those whose best key has the highest q k.

    k is one vector of head_dim values per position, q one for each kv head; both are normalised by `norm` and rotated
    like the attention's.
    """

    head_dim: int
    size: int
    top_k: int
    norm: Norm
    local: int = 1

    @property
    def most(self) -> int:
        """How many keys a query sees."""
        return self.top_k * self.size
