"""Attention of one query per sequence over keys that lie in blocks (Kwon et al., arXiv:2309.06180).

Shapes: N queries, each of a sequence of its own, H query heads, K kv heads, D and V values of a key and of a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from minillm.spec import Chunk


@dataclass(frozen=True)
class Paged:
    """Where the keys of N sequences lie: position p of sequence n in slot `tables[n, p // size] * size + p % size`.
    Query n stands at position last[n] and sees the keys from first[n] on."""

    tables: Tensor  # int32 [N, M]
    size: int  # positions of a block
    first: Tensor  # int64 [N]
    last: Tensor  # int64 [N]
    lengths: Tensor  # int32 [N]: last + 1

    @classmethod
    def at(cls, position_N: Tensor, tables: Tensor, size: int, window: int | None) -> Paged:
        """Of queries at these positions, int64 `[N]`, which see at most the last `window` keys, or those of a chunk."""
        if isinstance(window, Chunk):
            first = position_N // window * window
        else:
            first = torch.zeros_like(position_N) if window is None else (position_N - window + 1).clamp(min=0)
        return cls(tables, size, first, position_N, (position_N + 1).int())

    def slots(self, position: Tensor) -> Tensor:
        """Where positions lie, int64 `[N, P]` of each sequence -> int64 `[N, P]`."""
        return self.tables.gather(1, position // self.size).long() * self.size + position % self.size

    @property
    def most(self) -> int:
        """How many positions a sequence may have."""
        return self.tables.shape[1] * self.size


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    paged: Paged,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q kᵀ) v over the keys that each query sees; otherwise as `reference.attention`. q `[1, H, N, D]`,
    all sequences' keys k `[1, K, slots, D]` and values v `[1, K, slots, V]`, added `[1, H, N, X]` -> `[1, H, N, V]`."""
    position = torch.arange(paged.most, device=q.device).expand(len(paged.last), -1)
    seen = (position >= paged.first[:, None]) & (position <= paged.last[:, None])  # [N, S]
    slots = paged.slots(position).masked_fill(~seen, 0)
    keys, values = k[0][:, slots], v[0][:, slots]  # [K, N, S, D]
    grouped = rearrange(q, "1 (K G) N D -> K N G D", K=k.shape[1])
    scores = (grouped.float() @ keys.float().transpose(2, 3)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if slopes is not None:
        distances = (position - paged.last[:, None])[None, :, None].float()  # [1, N, 1, S]
        scores = scores + rearrange(slopes, "(K G) -> K 1 G 1", K=k.shape[1]) * distances
    if added is not None:
        back = paged.last[:, None] - position
        inside = (back >= 0) & (back < added.shape[-1])
        found = added[0].gather(-1, back.where(inside, 0).expand(len(added[0]), -1, -1)).masked_fill(~inside, 0)
        scores = scores + rearrange(found.float(), "(K G) N S -> K N G S", K=k.shape[1])
    scores = scores.masked_fill(~seen[None, :, None], float("-inf"))
    if sinks is not None:
        extra = rearrange(sinks.float(), "(K G) -> K 1 G 1", K=k.shape[1]).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, extra), dim=-1)
    weights = scores.softmax(dim=-1)[..., : paged.most]
    values = torch.where(seen[None, :, :, None], values.float(), 0.0)  # a slot that was never written may be anything
    return rearrange((weights @ values).to(q.dtype), "K N G V -> 1 (K G) N V")


def paged_latent_attention(
    q: Tensor,
    latent: Tensor,
    value_dim: int,
    paged: Paged,
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`paged_attention` of all heads over one key per position, whose first `value_dim` values are also its value: q
    `[1, H, N, R + P]`, latent `[1, slots, R + P]` -> `[1, H, N, R]`."""
    keys = latent.unsqueeze(1)
    return paged_attention(q, keys, keys[..., :value_dim], paged, scale, None, sinks)
