"""Compressed attention (DeepSeek-V4, 2026): a window of positions, and entries that stand for blocks of them.

    c = norm(W_c x);  q_h = rope(unit(W_h c));  k = v = rope(norm(W_kv x)), one for all heads
    y_h = unrope(softmax([q_h k_j / sqrt(D) of the window | of entries | a learned sink]) v)
    output = W_out [W_g y_g of each group g of heads]

One key for all heads, which is also the value, makes the cache small; entries make it smaller, by `span`. Because the
values are rotated too, the output of each head is rotated back by the query's position (unrope).

Shapes: B rows, T new tokens, S positions, M entries, H heads, D head_dim, C values kept of a position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minillm.model import held
from minillm.model.attention import Step
from minillm.model.compressed.entries import Entries, turned
from minillm.model.compressed.rows import CachedRows, PooledRows, Rows
from minillm.model.linear import Linear
from minillm.model.norm import Norm
from minillm.model.ragged import Piece, Ragged
from minillm.ops import Ops
from minillm.spec import Compressed as Spec

Asked = tuple[Tensor, ...]  # q [B, T, H, D], what is kept [B, T, C], and what an indexer is asked with


class GroupedLinear(nn.Module):
    """x `[B, T, G, I]` -> `[B, T, G R]`: each of G groups has its own matrix; `weight` stacks their rows."""

    MULTIPLIED = ("weight",)

    def __init__(self, in_features: int, groups: int, rank: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(groups * rank, in_features))
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        weight = held.matrix(self, "weight", x.dtype).unflatten(0, (self.groups, -1))
        return torch.einsum("btgi,gri->btgr", x, weight).flatten(2)


class CompressedAttention(nn.Module):
    """x `[B, T, E]` -> `[B, T, E]`; the cache is that of the window, or a pair of it and the cache of entries."""

    FP32 = ("sinks",)

    def __init__(self, spec: Spec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec, self.ops = spec, ops
        heads = spec.num_heads * spec.head_dim
        self.q_down = Linear(hidden_size, spec.q_rank, ops)
        self.q_norm = Norm(spec.norm, spec.q_rank, ops)
        self.q = Linear(spec.q_rank, heads, ops)
        self.kv = Linear(hidden_size, spec.head_dim, ops)
        self.kv_norm = Norm(spec.norm, spec.head_dim, ops)
        self.sinks = nn.Parameter(torch.zeros(spec.num_heads, dtype=torch.float32))
        self.entries = Entries(spec.entries, spec.rope, spec.q_rank, hidden_size, ops) if spec.entries else None
        self.group = GroupedLinear(heads // spec.groups, spec.groups, spec.group_rank)
        self.out = Linear(spec.groups * spec.group_rank, hidden_size, ops)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        cos, sin = step.rotary[self.spec.rope]
        asked = self.project(x, cos, sin)
        y = self._over(asked, step, cache) if step.ragged is None else self._over_blocks(asked, cache, step.ragged)
        y = turned(y, cos, -sin, self.spec.rope, self.ops)
        return self.out(self.group(y.flatten(2).unflatten(-1, (self.spec.groups, -1))))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> Asked:
        """q, rotated, what is kept of each position, and what an indexer is asked with."""
        spec, latent = self.spec, self.q_norm(self.q_down(x))
        q = self.q(latent).unflatten(-1, (spec.num_heads, spec.head_dim))
        q = turned(self.ops.rms_norm(q, None, spec.norm.eps), cos, sin, spec.rope, self.ops)
        key = turned(self.kv_norm(self.kv(x)).unsqueeze(2), cos, sin, spec.rope, self.ops).squeeze(2)
        if self.entries is None:
            return q, key
        indexed = self.entries.asked(x, latent, cos, sin)
        return q, torch.cat((key, self.entries.inputs(x)), dim=-1), *(indexed or ())

    def _over(self, asked: Asked, step: Step, cache: Any) -> Tensor:
        """y `[B, T, H, D]` of rows that are aligned."""
        visible, q = step.visible[self.spec.window], asked[0]
        assert visible.starts_BT is None, "entries would be made of several documents"
        if visible.position_B is not None:
            position = visible.position_B[:, None]
        else:
            position = torch.arange(visible.start, visible.start + visible.count, device=q.device)[None]
        position = position if visible.padding_B is None else position - visible.padding_B[:, None]
        rows = None if cache is None else CachedRows(*(cache if isinstance(cache, tuple) else (cache, None)))
        return self.attended(asked, position.expand(len(q), -1), rows)

    def _over_blocks(self, asked: Asked, pools: Any, ragged: Ragged) -> Tensor:
        """y `[1, N, H, D]` of tokens of many sequences."""
        held, made = pools if isinstance(pools, tuple) else (pools, None)
        window, parts, n = self.spec.window, [], ragged.singles
        if n:
            of_window, whole = ragged.paged[window], ragged.paged.get(None, ragged.paged[window])
            rows = PooledRows(held, made, of_window.slots, lambda at: whole.slots(at.expand(n, -1)), whole.most)
            alone = tuple(each[0, :n, None] for each in asked)
            parts.append(self.attended(alone, ragged.position_N[:, None], rows).transpose(0, 1))
        for piece in ragged.pieces:
            own = tuple(each[:, piece.tokens] for each in asked)
            position = torch.arange(piece.start, piece.start + own[0].shape[1], device=own[0].device)[None]
            parts.append(self.attended(own, position, self._of_piece(piece, held, made)))
        return torch.cat(parts, dim=1)

    def _of_piece(self, piece: Piece, held: Any, made: Any) -> PooledRows:
        window, keys = piece.visible[self.spec.window].first_key, piece.keys[self.spec.window]
        every = piece.keys.get(None, keys)
        return PooledRows(held, made, lambda at: keys[(at - window).clamp(min=0)], lambda at: every[at], len(every))

    def attended(self, asked: Asked, position: Tensor, rows: Rows | None) -> Tensor:
        """y `[B, T, H, D]` of tokens at positions int64 `[B, T]`, neighbours in each row, counted from its first token
        (a padded one is below 0); `rows` have what is before them, and are given what is new."""
        spec, (q, new, *indexed) = self.spec, asked
        before = torch.arange(spec.window - 1, 0, -1, device=q.device)
        if rows is None:
            at, kept = position, new
        elif q.shape[1] == 1:  # rows may be of one sequence, a guess behind the other: all is kept before any looks
            at = torch.cat((position - before, position), dim=1)
            rows.put(new, position)
            kept = rows.past(at)
        else:  # what is put may take the place of what is still seen
            at = torch.cat((position[:, :1] - before, position), dim=1)
            kept = torch.cat((rows.past(at[:, : len(before)]), new), dim=1)
            rows.put(new, position)
        near, here = at.unsqueeze(1), position.unsqueeze(-1)
        seen = (near <= here) & (near > here - spec.window) & (near >= 0)  # [B, T, S]
        keys = kept[..., : spec.head_dim]
        if self.entries is not None and spec.entries is not None:
            made, last, whole = self.entries.pooled(kept[..., spec.head_dim :], at[:, :1], position)
            if rows is not None:
                rows.add(made, last, whole)
                made = rows.entries()
            pair = (indexed[0], indexed[1]) if indexed else None
            seen = torch.cat((seen, self.entries.seen(made, pair, position)), dim=-1)
            keys = torch.cat((keys, made[..., : spec.entries.size]), dim=1)
        keys = keys.masked_fill(~seen.any(1).unsqueeze(-1), 0)  # what was never written may be anything
        return self.weighed(q, keys, seen)

    def weighed(self, q: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
        """softmax over the seen of keys `[B, S, D]` and the learned score; `[B, T, H, D]`."""
        scores = torch.einsum("bthd,bsd->bths", q, keys).float() * self.spec.head_dim**-0.5
        scores = scores.masked_fill(~seen.unsqueeze(2), float("-inf"))
        sinks = self.sinks.float()[:, None].expand(*scores.shape[:-1], 1)
        shares = torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1]
        return torch.einsum("bths,bsd->bthd", shares.to(keys.dtype), keys)
