"""Grouped-query attention (Ainslie et al., arXiv:2305.13245), with rotary positions, an optional window and gate.

    q, k, v = split(W_qkv x);  q, k = rope(norm(q)), rope(norm(k));  y = W_out softmax(q kᵀ / sqrt(D)) v

Shapes: B batch, T new tokens, S keys, E hidden size, H query heads, K kv heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minillm.model.cache import LayerCache
from minillm.model.indexer import Asked, BlockIndexer, of_blocks, of_rows
from minillm.model.linear import Linear
from minillm.model.norm import Norm, norm
from minillm.model.pools import KeyPool
from minillm.model.ragged import Ragged
from minillm.model.ragged import Step as Step
from minillm.model.recurrent.added import AddedConv
from minillm.ops import Ops
from minillm.ops.paged import Paged
from minillm.ops.sparse import Places
from minillm.spec import GQA, KV, MLA, Relative, Temperature


def tempered(positions: Tensor, made: Temperature) -> Tensor:
    """The factor of a query at each position, fp32 of their shape."""
    if not made.stepped:
        return 1 + made.rate * ((positions + made.shift).float() / made.span).clamp(min=1).log()
    spans = ((positions + made.shift) // made.span).float()
    return 1 + made.rate * torch.log1p(spans)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: F.softplus(x.float()).to(x.dtype),
}


def opened(y: Tensor, gate: Tensor, spec: GQA | MLA) -> Tensor:
    """y `[B, T, H D]` as far as its gates let it through."""
    assert spec.gate is not None
    act = GATES[spec.gate.activation](gate)
    if spec.gate.width == "value":
        return y * act
    return (y.unflatten(-1, (-1, spec.v_dim)) * act.unsqueeze(-1)).flatten(-2)


class Distances(nn.Module):
    """What queries add to their scores by distance: x `[B, T, E]` -> `[B, H, T, X]`, for keys 0 to X - 1 positions
    before each."""

    def __init__(self, spec: Relative, heads: int, hidden_size: int, ops: Ops):
        super().__init__()
        self.dim = spec.dim
        self.r = Linear(hidden_size, heads * spec.dim, ops)
        self.by_distance = nn.Parameter(torch.empty(spec.dim, spec.extent))
        if self.by_distance.device.type != "meta":
            nn.init.normal_(self.by_distance, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return (self.r(x).unflatten(-1, (-1, self.dim)) @ self.by_distance).transpose(1, 2)


class GroupedQueryAttention(nn.Module):
    """x `[B, T, E]`, or as many values as it is `given` -> `[B, T, E]`."""

    def __init__(self, spec: GQA, hidden_size: int, ops: Ops, given: int | None = None):
        super().__init__()
        self.spec = spec
        self.ops = ops
        q, k = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        with_q = spec.gate is not None and spec.gate.with_q
        parts = {"q": 2 * q if with_q else q}  # of each head q, then its gate
        parts |= {"k": k, "v": spec.num_kv_heads * spec.v_dim} if spec.kv.layer is None else {}
        if spec.kv.v_is_k:
            parts.pop("v", None)
        self.qkv = Linear(given or hidden_size, parts, ops, bias=spec.qkv_bias)
        self.out = Linear(values := spec.num_heads * spec.v_dim, hidden_size, ops, bias=spec.out_bias)
        gates = spec.num_heads if spec.gate and spec.gate.width == "head" else values
        self.gate = Linear(hidden_size, gates, ops) if spec.gate and not with_q else None
        self.normed_together = spec.qk_norm is not None and spec.qk_norm.width == "all"
        made = spec.qk_norm.norm if spec.qk_norm else None
        of_k = made if spec.kv.layer is None else None
        sizes: list[Any] = [q, k] if self.normed_together else [spec.head_dim] * 2
        if spec.qk_norm is not None and spec.qk_norm.width == "heads":
            sizes = [(spec.num_heads, spec.head_dim), (spec.num_kv_heads, spec.head_dim)]
        self.q_norm, self.k_norm = (
            norm(each, size, ops, self.normed_together) for each, size in zip((made, of_k), sizes, strict=True)
        )
        self.v_norm = norm(spec.kv.v_norm, spec.v_dim, ops)
        self.turned_first = spec.qk_norm is not None and spec.qk_norm.turned
        alike = not self.turned_first and (spec.qk_norm is None or spec.qk_norm.width == "head")
        each_head = made is None or (isinstance(self.q_norm, Norm) and made.affine and alike)
        # norm, rotation and cache can be one op
        plain = spec.kv == KV(indexer=spec.indexer)
        self.fusible = each_head and spec.clip is None and spec.rope is not None and plain
        self.indexer = None
        if spec.indexer is not None:
            assert spec.window is None, "an indexer chooses from all of the past"
            assert spec.scores.relative is None, "of chosen keys no distances are known"
            self.indexer = BlockIndexer(spec.indexer, hidden_size, spec.num_kv_heads, ops)
        self.conv = AddedConv(spec.conv, {each: parts[each] for each in "kv"}) if spec.conv else None
        relative = spec.scores.relative
        self.distances = Distances(relative, spec.num_heads, hidden_size, ops) if relative else None
        self.lent_as: int | None = None  # this layer's number, where others read its keys and values
        self.sinks = nn.Parameter(torch.zeros(spec.num_heads)) if spec.sinks else None
        self._slopes: Tensor | None = None  # on the device, once they were asked for

    def forward(self, x: Tensor, step: Step, cache: Any, change: Tensor | None = None) -> Tensor:
        """With a `change` of q, k and v side by side."""
        qkv, gate = self.gated(self.qkv(x) if change is None else self.qkv(x) + change)
        gate = gate if self.gate is None else self.gate(x)
        if self.conv is not None:
            cache, of_inputs = (None, None) if cache is None else cache
            q, kv = qkv.split((self.spec.num_heads * self.spec.head_dim, self.conv.spec.channels), dim=-1)
            qkv = torch.cat((q, self.conv(kv, step, of_inputs)), dim=-1)
        added = None if self.distances is None else self._tempered(self.distances(x), step)
        asked = None if self.indexer is None else self.indexer.asked(x, lambda heads: self._turned(heads, step))
        if step.ragged is None:
            y = self._over(qkv, asked, added, step, cache)
        else:
            y = self._over_blocks(qkv, asked, added, step, cache, step.ragged)
        y = rearrange(y, "B H T D -> B T (H D)")
        return self.out(y if gate is None else opened(y, gate, self.spec))

    def _over(
        self, qkv: Tensor, asked: Asked | None, added: Tensor | None, step: Step, cache: LayerCache | None
    ) -> Tensor:
        """y `[B, H, T, D]` of rows that are aligned."""
        spec, visible, slots = self.spec, step.visible[self.spec.window], step.slots[self.spec.window]
        if spec.kv.layer is not None:
            q, (k, v) = self._query(qkv, step), step.kv[spec.kv.layer]
        elif cache is not None and self.fusible and slots is not None:
            q = self._into_cache(qkv, slots, step, cache)
            k, v = cache.filled(visible.start + visible.count)
        else:
            q, k, v = (each.transpose(1, 2) for each in self._rotated(qkv, step))  # [B, heads, T, D]
            if cache is not None and slots is not None and visible.position_B is not None:
                k, v = cache.put(k, v, slots)
            elif cache is not None:
                k, v = cache.update(k, v, step.start)
        if self.lent_as is not None:
            step.kv[self.lent_as] = k, v
        visible = visible if asked is None else of_rows(self, asked, step, cache)
        return self.ops.attention(self._tempered(q, step), k, v, visible, *self._how(q, added))

    def _over_blocks(
        self, qkv: Tensor, asked: Asked | None, added: Tensor | None, step: Step, pool: KeyPool, ragged: Ragged
    ) -> Tensor:
        """y `[1, H, N, D]` of tokens of many sequences."""
        group = self.spec.window
        if self.spec.kv.layer is not None:
            q, pool = self._query(qkv, step), step.kv[self.spec.kv.layer]
        elif self.fusible:
            q = self._into_cache(qkv, ragged.slots[group], step, pool)
        else:
            q, k, v = (each.transpose(1, 2) for each in self._rotated(qkv, step))
            pool.put(k, v, ragged.slots[group])
        if self.lent_as is not None:
            step.kv[self.lent_as] = pool
        q, single, parts = self._tempered(q, step), slice(0, ragged.singles), []
        how = self._how(q, added, single)
        chosen = None if asked is None else of_blocks(self, asked, step, pool)
        if ragged.singles and chosen is not None and chosen.singles is not None:
            parts.append(self._over_chosen(q[:, :, single], pool, ragged.paged[group], chosen.singles, how))
        elif ragged.singles:
            parts.append(self.ops.paged_attention(q[:, :, single], pool.k, pool.v, ragged.paged[group], *how))
        for i, piece in enumerate(ragged.pieces):
            how = self._how(q, added, piece.tokens)
            k, v = pool.read(piece.keys[group])
            visible = piece.visible[group] if chosen is None else chosen.pieces[i]
            parts.append(self.ops.attention(q[:, :, piece.tokens], k, v, visible, *how))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _over_chosen(self, q: Tensor, pool: KeyPool, paged: Paged, places: Places, how: tuple[Any, ...]) -> Tensor:
        """y `[1, H, N, D]` of a token of each of N sequences, over the keys and values at these places alone."""
        slots = paged.slots(places.position.flatten(1)).view_as(places.position)  # [N, K, P]
        heads = torch.arange(slots.shape[1], device=slots.device)[:, None]
        k, v = (each[0][heads, slots] for each in (pool.k, pool.v))  # [N, K, P, D]
        return self.ops.attention(q.transpose(0, 2), k, v, places.visible(), *how).transpose(0, 2)

    def _turned(self, heads: Tensor, step: Step) -> Tensor:
        """Heads `[B, T, their number, D]` of an indexer, rotated as q and k are."""
        rope = self.spec.rope
        return heads if rope is None else self.ops.rope(heads, *step.rotary[rope], rope.layout)

    def _how(self, q: Tensor, added: Tensor | None = None, tokens: slice = slice(None)) -> tuple[Any, ...]:
        """What turns products of q and k of these tokens into scores."""
        scores = self.spec.scores
        how = scores.scale, scores.softcap, self.sinks
        if scores.slopes is not None and (self._slopes is None or self._slopes.device != q.device):
            self._slopes = torch.tensor(scores.slopes, dtype=torch.float32, device=q.device)
        if added is not None:
            return *how, self._slopes, added[:, :, tokens]
        return how if self._slopes is None else (*how, self._slopes)

    def _tempered(self, q: Tensor, step: Step) -> Tensor:
        """q `[B, H, T, D]`, multiplied as its position wants it."""
        if (made := self.spec.scores.temperature) is None:
            return q
        assert step.positions is not None
        return (q * tempered(step.positions, made)[:, None, :, None]).to(q.dtype)

    def gated(self, qkv: Tensor) -> tuple[Tensor, Tensor | None]:
        """q, k and v side by side, and what the sum of the values is gated by, `[B, T, H D]`, if it lies with q."""
        if self.spec.gate is None or not self.spec.gate.with_q:
            return qkv, None
        width = self.spec.num_heads * self.spec.head_dim
        q, kv = qkv[..., : 2 * width], qkv[..., 2 * width :]
        q, gate = rearrange(q, "B T (H both D) -> both B T (H D)", both=2, D=self.spec.head_dim)
        return torch.cat((q, kv), dim=-1), gate

    def _query(self, q: Tensor, step: Step) -> Tensor:
        """q `[B, H, T, D]` of a layer that has nothing else."""
        q = rearrange(q, "B T (H D) -> B T H D", D=self.spec.head_dim)
        return self._placed(q, self.q_norm, step).transpose(1, 2)

    def _placed(self, heads: Tensor, norm: Any, step: Step) -> Tensor:
        """q or k `[B, T, their heads, D]`, normalised, clamped and rotated."""
        rope, clip = self.spec.rope, self.spec.clip
        if self.turned_first and rope is not None:
            heads = self.ops.rope(heads, *step.rotary[rope], rope.layout)
        heads = norm(heads.flatten(2)).view_as(heads) if self.normed_together else norm(heads)
        heads = heads if clip is None else heads.clamp(-clip, clip)
        if self.turned_first or rope is None:
            return heads
        return self.ops.rope(heads, *step.rotary[rope], rope.layout)

    def _into_cache(self, qkv: Tensor, slots: Tensor, step: Step, cache: LayerCache | KeyPool) -> Tensor:
        """q `[B, H, T, D]`; k and v go where the cache keeps them."""
        assert self.spec.rope is not None
        given = (cache.k, cache.v, slots, *step.rotary[self.spec.rope], self.spec.rope.layout)
        if not isinstance(self.q_norm, Norm):
            return self.ops.qk_norm_rope_cache(qkv, self.spec.num_heads, *given)
        made, weights = self.q_norm.spec, (self.q_norm.weight, self.k_norm.weight)
        return self.ops.qk_norm_rope_cache(qkv, self.spec.num_heads, *given, *weights, made.eps, made.offset, made.cast)

    def heads(self, qkv: Tensor) -> list[Tensor]:
        """q, k and v `[B, T, their heads, D]` that lie side by side; v is k where there is nothing behind it."""
        spec = self.spec
        width = spec.num_kv_heads * spec.head_dim
        parts = [spec.num_heads * spec.head_dim, width, qkv.shape[-1] - spec.num_heads * spec.head_dim - width]
        q, k, v = (
            part.unflatten(-1, (-1, size)) if part.shape[-1] else part
            for part, size in zip(qkv.split(parts, -1), (spec.head_dim, spec.head_dim, spec.v_dim), strict=True)
        )
        return [q, k, k if spec.kv.v_is_k else v]

    def _rotated(self, qkv: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v `[B, T, their heads, D]`: q and k as `_placed` has them, v normalised, multiplied and clamped."""
        spec = self.spec
        if (
            spec.qk_norm is None and spec.clip is None and spec.rope is not None and spec.kv == KV()
        ):  # side by side: one rotation for both
            heads = rearrange(qkv, "B T (heads D) -> B T heads D", D=spec.head_dim)
            q_and_k, v = heads.split((spec.num_heads + spec.num_kv_heads, spec.num_kv_heads), dim=2)
            turned = self.ops.rope(q_and_k, *step.rotary[spec.rope], spec.rope.layout)
            return *turned.split((spec.num_heads, spec.num_kv_heads), dim=2), v
        q, k, v = self.heads(qkv)
        v = self.v_norm(v) if spec.kv.v_scale == 1 else self.v_norm(v) * spec.kv.v_scale
        v = v if spec.clip is None else v.clamp(-spec.clip, spec.clip)
        return self._placed(q, self.q_norm, step), self._placed(k, self.k_norm, step), v
