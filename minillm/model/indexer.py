"""Indexers: which keys attention looks at (`spec.Indexer`, `spec.BlockIndexer`), and where these lie.

An indexer caches a key of its own for each position, beside the attention's cache. Its choice has no gradient.

Shapes: B batch, T new tokens, N tokens of a pass over many sequences, S keys, H heads, D values of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from minillm import spec
from minillm.model.cache import Rows
from minillm.model.linear import Linear
from minillm.model.norm import norm
from minillm.model.pools import RowPool
from minillm.model.ragged import Ragged
from minillm.ops import Ops, sparse
from minillm.ops.paged import Paged
from minillm.ops.sparse import Places
from minillm.ops.visibility import Visibility

Turn = Callable[..., Tensor]  # heads `[B, T, heads, D]` and a layout -> the same, rotated by their positions


@dataclass(frozen=True)
class Asked:
    """The queries of a pass, tensors `[B, T, H, …]`, and its new keys, `[B, T, D]`."""

    queries: tuple[Tensor, ...]
    key: Tensor

    def of(self, tokens: slice) -> tuple[Tensor, ...]:
        """The queries of some tokens."""
        return tuple(each[:, tokens] for each in self.queries)


@dataclass(frozen=True)
class Chosen:
    """In a pass over many sequences: the places of the keys that single tokens see (None: all keys), and what tokens
    of each piece see."""

    singles: Places | None
    pieces: tuple[Visibility, ...]


class Choosing(nn.Module):
    """What both kinds have in common."""

    spec: Any

    def best(self, queries: tuple[Tensor, ...], keys: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """Which of the keys `[B, S, D]` at positions first … last, int64 `[B or 1, T]`, the queries choose: bool
        `[B, K', T, S]`, K' being 1 or the number of kv heads."""
        raise NotImplementedError

    @torch.no_grad()
    def chosen(self, queries: tuple[Tensor, ...], keys: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """`best`, for as many queries at a time as there is room for scores."""
        batch, count, heads = queries[0].shape[:3]
        size = max(sparse.AT_ONCE // (batch * heads * keys.shape[1]), 1)
        found = [
            self.best(
                tuple(each[:, at : at + size] for each in queries), keys, *(e[:, at : at + size] for e in (first, last))
            )
            for at in range(0, count, size)
        ]
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def narrowed(self, queries: tuple[Tensor, ...], keys: Tensor, visible: Visibility) -> Visibility:
        """`visible`, narrowed to the chosen keys."""
        if keys.shape[1] <= self.spec.most:
            return visible
        first, last = (each if each.dim() > 1 else each[None] for each in visible.spans)
        return replace(visible, chosen=self.chosen(queries, keys, first, last))

    def placed(self, queries: tuple[Tensor, ...], pool: RowPool, paged: Paged) -> Places | None:
        """The places of the keys that one token of each of N sequences sees, queries `[1, N, H, …]`; None: all keys."""
        if paged.most <= self.spec.most:
            return None
        position = torch.arange(paged.most, device=paged.last.device).expand(len(paged.last), -1)
        slots = torch.where(position <= paged.last[:, None], paged.slots(position), 0)
        keys = pool.rows[0][slots]  # [N, S, D]
        of_each = tuple(each.transpose(0, 1) for each in queries)
        chosen = self.chosen(of_each, keys, paged.first[:, None], paged.last[:, None])
        return Places.of(chosen, paged.last, self.spec.most)


class Indexer(Choosing):
    """One choice for all heads of an attention."""

    def __init__(self, made: spec.Indexer, hidden_size: int, q_rank: int, ops: Ops):
        super().__init__()
        self.spec = made
        self.q = Linear(q_rank, made.num_heads * made.head_dim, ops)
        self.k = Linear(hidden_size, made.head_dim, ops)
        self.k_norm = norm(made.norm, made.head_dim, ops)
        self.weights = Linear(hidden_size, made.num_heads, ops)

    @torch.no_grad()
    def asked(self, x: Tensor, latent: Tensor, turn: Turn) -> Asked:
        """From x `[B, T, E]` and the latent of its queries `[B, T, q_rank]`."""
        q = rearrange(self.q(latent), "B T (H D) -> B T H D", D=self.spec.head_dim)
        k = self.k_norm(self.k(x)).unsqueeze(2)
        q, k = (turn(each, self.spec.layout) for each in (q, k))
        return Asked((q, self.weights(x)), k.squeeze(2))

    def best(self, queries: tuple[Tensor, ...], keys: Tensor, first: Tensor, last: Tensor) -> Tensor:
        q, weights = queries
        return sparse.best_keys(q, weights, keys, first, last, self.spec.top_k)


class BlockIndexer(Choosing):
    """A choice for each kv head."""

    def __init__(self, made: spec.BlockIndexer, hidden_size: int, num_kv_heads: int, ops: Ops):
        super().__init__()
        self.spec = made
        self.q = Linear(hidden_size, num_kv_heads * made.head_dim, ops)
        self.k = Linear(hidden_size, made.head_dim, ops)
        self.q_norm = norm(made.norm, made.head_dim, ops)
        self.k_norm = norm(made.norm, made.head_dim, ops)

    @torch.no_grad()
    def asked(self, x: Tensor, turn: Turn) -> Asked:
        """From x `[B, T, E]`."""
        q = rearrange(self.q(x), "B T (H D) -> B T H D", D=self.spec.head_dim)
        k = self.k_norm(self.k(x)).unsqueeze(2)
        return Asked((turn(self.q_norm(q)),), turn(k).squeeze(2))

    def best(self, queries: tuple[Tensor, ...], keys: Tensor, first: Tensor, last: Tensor) -> Tensor:
        made, (q,) = self.spec, queries
        return sparse.best_blocks(q, keys, first, last, made.size, made.top_k, made.local)


def of_rows(attention: Any, asked: Asked | None, step: Any, cache: Any) -> Visibility:
    """What the queries of aligned rows see, by the attention's own indexer or the choice of an earlier layer."""
    lender, visible = attention.spec.lender, step.visible[None]
    if lender in step.chosen:
        return step.chosen[lender]
    if asked is not None:
        visible = attention.indexer.narrowed(asked.queries, _kept(asked.key, step, cache), visible)
    if attention.lent_as is not None:
        step.chosen[attention.lent_as] = visible
    return visible


def _kept(key: Tensor, step: Any, cache: Any) -> Tensor:
    """The keys of all positions so far, `[B, S, D]`."""
    if cache is None:
        return key
    rows: Rows = cache.index
    if step.visible[None].position_B is not None:
        return rows.put(key, step.slots[None])
    return rows.update(key, step.start)


def of_blocks(attention: Any, asked: Asked | None, step: Any, pool: Any) -> Chosen:
    """The same for the tokens of many sequences."""
    ragged: Ragged = step.ragged
    lender = attention.spec.lender
    if lender in step.chosen:
        return step.chosen[lender]
    singles, pieces = None, tuple(piece.visible[None] for piece in ragged.pieces)
    if asked is not None:
        rows: RowPool = pool.index
        rows.put(asked.key, ragged.slots[None])
        if ragged.singles:
            singles = attention.indexer.placed(asked.of(slice(ragged.singles)), rows, ragged.paged[None])
        pieces = tuple(
            attention.indexer.narrowed(asked.of(piece.tokens), rows.read(piece.keys[None]), visible)
            for piece, visible in zip(ragged.pieces, pieces, strict=True)
        )
    found = Chosen(singles, pieces)
    if attention.lent_as is not None:
        step.chosen[attention.lent_as] = found
    return found
