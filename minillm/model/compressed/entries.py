"""Entries, which stand for blocks of positions (DeepSeek-V4, 2026), and which of them a query sees.

    entry e = norm(sum over its positions j of softmax_j(W_gate x_j + b_j) * W x_j), rotated like position e * span
    score of e = sum over heads h of w_h relu(q_h k_e) / sqrt(D)          an indexer's; the top_k best are seen

Shapes: B rows, T tokens, S positions, M entries, J positions of an entry, D values of it, H heads of an indexer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm.model.linear import Linear
from minillm.model.norm import Norm
from minillm.model.rope import Rotary
from minillm.ops import Ops
from minillm.spec import Entries as Spec
from minillm.spec import EntryIndexer, Rope


def turned(x: Tensor, cos: Tensor, sin: Tensor, rope: Rope, ops: Ops) -> Tensor:
    """x `[B, T, heads, D]`, its last rope.dim values rotated in fp32; cos and sin `[B or 1, T, rope.dim / 2]`."""
    still, turning = x.split((x.shape[-1] - rope.dim, rope.dim), dim=-1)
    return torch.cat((still, ops.rope(turning.float(), cos.float(), sin.float(), rope.layout).to(x.dtype)), dim=-1)


class Pooled(nn.Module):
    """Entries of `size` values, computed from the `inputs` values of each of their positions."""

    FP32 = ("place",)

    def __init__(self, spec: Spec, size: int, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec, self.size = spec, size
        each = size * (2 if spec.overlaps else 1)
        self.kv_gate = Linear(hidden_size, {"kv": each, "gate": each}, ops)
        self.place = nn.Parameter(torch.zeros(spec.span, each, dtype=torch.float32))
        self.norm = Norm(spec.norm, size, ops)

    def forward(self, inputs: Tensor, missing: Tensor) -> Tensor:
        """`[B, M, J, inputs]` of each entry's positions, and which of these do not exist, bool `[B, M, J]` ->
        `[B, M, D]`, not rotated yet."""
        kv, gate = inputs.chunk(2, dim=-1)
        gate = gate.float() + self.place.repeat(self.spec.reach // self.spec.span, 1)
        if self.spec.overlaps:  # the positions before have the first half of all values, its own the second
            kv, gate = (
                torch.cat((each[:, :, : self.spec.span, : self.size], each[:, :, self.spec.span :, self.size :]), dim=2)
                for each in (kv, gate)
            )
        shares = gate.masked_fill(missing.unsqueeze(-1), float("-inf")).softmax(2)
        kept = kv.masked_fill(missing.unsqueeze(-1), 0)  # what was never written may be anything
        return self.norm((shares * kept.float()).sum(2).to(kv.dtype))


class Indexer(nn.Module):
    """Which entries a query sees."""

    def __init__(self, spec: Spec, made: EntryIndexer, q_rank: int, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = made
        self.keys = Pooled(spec, made.head_dim, hidden_size, ops)
        self.q = Linear(q_rank, made.num_heads * made.head_dim, ops)
        self.weights = Linear(hidden_size, made.num_heads, ops)

    def forward(self, q: Tensor, weights: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
        """Those of the entries that are `seen`, bool `[B, T, M]`, that are among the best of a query; q
        `[B, T, H, D]`, weights `[B, T, H]`, keys `[B, M, D]`."""
        scores = torch.relu(torch.einsum("bthd,bmd->bthm", q.float(), keys.float())) * self.spec.head_dim**-0.5
        scores = (scores * (weights.float() * self.spec.num_heads**-0.5).unsqueeze(-1)).sum(2)
        best = scores.masked_fill(~seen, float("-inf")).topk(min(self.spec.top_k, keys.shape[1]), dim=-1).indices
        return torch.zeros_like(seen).scatter(-1, best, True) & seen


class Entries(nn.Module):
    """Entries of a layer, with the keys of its indexer behind them where it has one."""

    def __init__(self, spec: Spec, rope: Rope, q_rank: int, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec, self.rope, self.ops = spec, rope, ops
        self.made = Pooled(spec, spec.size, hidden_size, ops)
        self.indexer = Indexer(spec, spec.indexer, q_rank, hidden_size, ops) if spec.indexer else None
        self.rotary = Rotary(rope, ops.cos_sin)

    def inputs(self, x: Tensor) -> Tensor:
        """What positions give to entries, `[B, T, inputs]`."""
        own = self.made.kv_gate(x)
        return own if self.indexer is None else torch.cat((own, self.indexer.keys.kv_gate(x)), dim=-1)

    def pooled(self, inputs: Tensor, first: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The entries `[B, M, kept]` that may end at positions `[B, T]`, the last position of each, and which of them
        do; `inputs` are those of neighbouring positions from `first` on, int64 `[B, 1]`."""
        span, reach, device = self.spec.span, self.spec.reach, inputs.device
        count = -(-position.shape[1] // span)
        number = (position[:, :1] // span).clamp(min=0) + torch.arange(count, device=device)
        last = number * span + span - 1
        wanted = last.unsqueeze(-1) - torch.arange(reach - 1, -1, -1, device=device)  # [B, M, J]
        at = (wanted - first.unsqueeze(-1)).clamp(0, inputs.shape[1] - 1)
        rows = inputs.gather(1, at.flatten(1).unsqueeze(-1).expand(len(inputs), -1, inputs.shape[2]))
        rows, missing = rows.unflatten(1, (count, reach)), (wanted < 0).expand(len(inputs), -1, -1)
        widths = [2 * each.place.shape[1] for each in self._pools]
        made = [pool(part, missing) for pool, part in zip(self._pools, rows.split(widths, -1), strict=True)]
        cos, sin = self.rotary(number * span, (0,), inputs.dtype)
        made = [turned(each.unsqueeze(2), cos, sin, self.rope, self.ops).squeeze(2) for each in made]
        return torch.cat(made, dim=-1), last.expand(len(inputs), -1), (last <= position[:, -1:]).expand(len(inputs), -1)

    def seen(self, entries: Tensor, asked: tuple[Tensor, Tensor] | None, position: Tensor) -> Tensor:
        """Which of all entries `[B, M, kept]` queries at positions `[B, T]` see, bool `[B, T, M]`."""
        number = torch.arange(entries.shape[1], device=entries.device)
        whole = (number < (position.unsqueeze(-1) + 1) // self.spec.span).expand(len(entries), -1, -1)
        if self.indexer is None or asked is None:
            return whole
        return self.indexer(*asked, entries[..., self.spec.size :], whole)

    def asked(self, x: Tensor, latent: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the indexer compares entries with: q `[B, T, H, D]`, weights `[B, T, H]`."""
        if self.indexer is None:
            return None
        q = self.indexer.q(latent).unflatten(-1, (-1, self.indexer.spec.head_dim))
        return turned(q, cos, sin, self.rope, self.ops), self.indexer.weights(x)

    @property
    def _pools(self) -> list[Pooled]:
        return [self.made] if self.indexer is None else [self.made, self.indexer.keys]
