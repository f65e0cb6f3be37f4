"""Which keys the heads of an indexer choose for a query (`spec.Indexer`, `spec.BlockIndexer`): scores and their best.

Shapes: B batch, T queries, S keys, H heads of an indexer, D its head_dim, K kv heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops.visibility import Visibility

AT_ONCE = 2**25  # scores, of all heads together: 128 MiB in fp32


def key_scores(q: Tensor, weights: Tensor, k: Tensor) -> Tensor:
    """Sum over h of weights_h relu(q_h k / sqrt(D)) / sqrt(H): q `[B, T, H, D]`, weights `[B, T, H]`, k `[B, S, D]` ->
    fp32 `[B, T, S]`."""
    heads, size = q.shape[-2:]
    each = F.relu((q.float() @ k.float().transpose(-1, -2).unsqueeze(1)) * size**-0.5)
    return ((weights.float() * heads**-0.5).unsqueeze(-2) @ each).squeeze(-2)


def best(scores: Tensor, count: int) -> Tensor:
    """The `count` highest scores of each row, or all above -inf if there are fewer; of equal scores the first: bool of
    the shape of scores `[..., S]`."""
    if count >= scores.shape[-1]:
        return scores > float("-inf")
    least = scores.topk(count, dim=-1).values[..., -1:]
    above = scores > least
    equal = (scores == least) & (least > float("-inf"))
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def best_keys(q: Tensor, weights: Tensor, k: Tensor, first: Tensor, last: Tensor, count: int) -> Tensor:
    """Of the keys at positions first … last, int64 `[B or 1, T]`, the `count` of the highest scores: bool
    `[B, 1, T, S]`."""
    seen = visible(first, last, k.shape[1])
    return best(key_scores(q, weights, k).masked_fill(~seen, float("-inf")), count).unsqueeze(1)


def best_blocks(q: Tensor, k: Tensor, first: Tensor, last: Tensor, size: int, count: int, local: int) -> Tensor:
    """Of the blocks of `size` keys from position `first` on, up to position `last`, int64 `[B or 1, T]`, the `local`
    last ones and those of the highest q k of any key, `count` in all: q `[B, T, K, D]`, k `[B, S, D]` -> bool
    `[B, K, T, S]`, true of the keys in them that the query may see."""
    keys = k.shape[1]
    seen = visible(first, last, keys).unsqueeze(1)  # [B or 1, 1, T, S]
    scores = q.float().transpose(1, 2) @ k.float().transpose(-1, -2).unsqueeze(1)  # [B, K, T, S]
    scores = scores.masked_fill(~seen, float("-inf"))
    block = (torch.arange(keys, device=k.device) - first.unsqueeze(-1)).clamp(min=0).unsqueeze(1) // size
    block = block.expand_as(scores)
    highest = scores.new_full((*scores.shape[:-1], -(-keys // size)), float("-inf"))
    highest.scatter_reduce_(-1, block, scores, "amax")
    own = ((last - first) // size)[:, None, :, None] - torch.arange(local, device=k.device)
    highest.scatter_(-1, own.clamp(min=0).expand(*scores.shape[:-1], -1), float("inf"))
    return best(highest, count).gather(-1, block) & seen


def visible(first: Tensor, last: Tensor, keys: int) -> Tensor:
    """Bool `[B or 1, T, S]`: the keys at positions first … last, int64 `[B or 1, T]`."""
    position = torch.arange(keys, device=first.device)
    return (position >= first.unsqueeze(-1)) & (position <= last.unsqueeze(-1))


@dataclass(frozen=True)
class Places:
    """The positions of the keys that one query of each of N sequences sees, int64 `[N, K', P]`, K' being 1 or the
    number of kv heads, and which of them are `real`: the others fill up."""

    position: Tensor
    real: Tensor

    @classmethod
    def of(cls, chosen: Tensor, last: Tensor, count: int) -> Places:
        """Those chosen, bool `[N, K', 1, S]`, at most `count`; what fills up is the query's own, int64 `[N]`."""
        keys = chosen.shape[-1]
        before = torch.arange(keys, 0, -1, device=chosen.device) * chosen.squeeze(2)  # high where early, 0 if not seen
        found = before.topk(min(count, keys), dim=-1).values
        real = found > 0
        return cls(torch.where(real, keys - found, last[:, None, None]), real)

    def visible(self) -> Visibility:
        """What the queries see, where nothing but these keys is given, `[N, K', P, …]`."""
        return Visibility(self.real.shape[-1] - 1, 1, None, None, self.real.device, chosen=self.real.unsqueeze(2))
