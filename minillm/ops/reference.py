"""Every op in plain PyTorch: the specification that kernels are tested against, and the path on a CPU.

Shapes: B batch, T queries, S keys, H query heads, K kv heads, G = H / K, D head_dim, R rotated values of D.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minillm.ops.activations import activate
from minillm.ops.cross_entropy import linear_cross_entropy as linear_cross_entropy
from minillm.ops.visibility import Visibility
from minillm.spec import CappedSwiGLU, ClampedSwiGLU, Gating, NormCast, RopeLayout, Ungated
from minillm.weights import fp8
from minillm.weights.fp8 import Fp8
from minillm.weights.grouped import Grouped


class ExpertMatrices(Protocol):
    """One matrix per expert, by its number: a tensor `[E, out, in]`, or what makes each when it is asked for."""

    def __getitem__(self, expert: int, /) -> Tensor: ...


class ExpertProducts(Protocol):
    """What multiplies with the matrix of an expert itself: x `[N, in]` -> `[N, out]`."""

    def product(self, expert: int, x: Tensor, bias: Tensor | None) -> Tensor: ...


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b; x `[..., I]`, weight `[O, I]`, bias `[O]` -> `[..., O]`, all of one dtype."""
    return F.linear(x, weight, bias)


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, offset: float = 0.0, cast: NormCast = "before_weight"
) -> Tensor:
    """(offset + w) * x / sqrt(mean(x²) + eps) over the last dimension, in fp32; `cast` as in `spec.Norm`. x `[..., N]`,
    weight `[N]`, or None for a factor of 1; returns x's shape and dtype."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    if weight is None:
        return normed.to(x.dtype)
    if cast == "before_weight":
        return normed.to(x.dtype) * (weight + offset if offset else weight)
    return (normed * (weight.float() + offset)).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: NormCast = "before_weight"
) -> tuple[Tensor, Tensor]:
    """s = x + residual, all of one shape and dtype; returns rms_norm(s) and s."""
    s = x + residual
    return rms_norm(s, weight, eps, offset, cast), s


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, of one shape and dtype."""
    return x + y


def cos_sin(positions: Tensor, rates: Tensor, factors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos(p r) f and sin(p r) f, computed in fp32, of int64 positions p `[B or 1, T]`, or `[B or 1, T, R/2]` of each
    pair, rates r `[B or 1, 1, R/2]` and factors f `[B or 1, 1, 1]`: `[B or 1, T, R/2]` in `dtype`."""
    phases = (positions if positions.dim() == 3 else positions.unsqueeze(-1)).float() * rates
    return (phases.cos() * factors).to(dtype), (phases.sin() * factors).to(dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor, layout: RopeLayout = "half") -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) for each pair of the first R values of each head.

    x `[B, T, heads, D]`; cos and sin `[B or 1, T, R/2]` in x's dtype; the D - R values behind stay as they are.
    """
    rotated = 2 * cos.shape[-1]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)  # [B, T, 1, R/2]
    if layout == "half":
        a, b = x[..., : rotated // 2], x[..., rotated // 2 : rotated]
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    else:
        a, b = x[..., 0:rotated:2], x[..., 1:rotated:2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    return turned if rotated == x.shape[-1] else torch.cat((turned, x[..., rotated:]), dim=-1)


def qk_norm_rope_cache(
    qkv: Tensor,
    num_heads: int,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: RopeLayout = "half",
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    cast: NormCast = "before_weight",
) -> Tensor:
    """All between the product of q, k and v and attention: q, k = rope(norm(q)), rope(norm(k)), and k and v of token t
    of row b go to slot slots[b, t] of the caches.

    qkv `[B, T, (H + 2K) D]`, caches `[B, K, S, D]`, slots int64 `[B or 1, T]`, cos and sin `[B or 1, T, R / 2]`,
    weights `[D]` of the norms of q and k, or None for both -> q `[B, H, T, D]`.
    """
    heads = rearrange(qkv, "B T (heads D) -> B T heads D", D=k_cache.shape[-1])
    kv_heads = k_cache.shape[1]
    turning, v = heads.split((num_heads + kv_heads, kv_heads), dim=2)
    if q_weight is not None and k_weight is not None:
        q, k = turning.split((num_heads, kv_heads), dim=2)
        normed = [rms_norm(each, w, eps, offset, cast) for each, w in ((q, q_weight), (k, k_weight))]
        q, k = (rope(each, cos, sin, layout) for each in normed)
    else:  # q and k lie side by side: one rotation turns both
        q, k = rope(turning, cos, sin, layout).split((num_heads, kv_heads), dim=2)
    for cache, new in ((k_cache, k.transpose(1, 2)), (v_cache, v.transpose(1, 2))):
        if len(slots) == 1:
            cache.index_copy_(2, slots[0], new)
        else:
            for row, values, at in zip(cache, new, slots, strict=True):
                row.index_copy_(1, at, values)
    return q.transpose(1, 2)


def above_quantile(x: Tensor, share: float) -> Tensor:
    """max(x - mean(x) - q std(x), 0) over the last dimension, in fp32, q the `share` quantile of the normal
    distribution: about that share of normally distributed values becomes 0."""
    x32 = x.to(torch.promote_types(x.dtype, torch.float32))
    cut = x32.mean(-1, keepdim=True) + NormalDist().inv_cdf(share) * x32.std(-1, correction=0, keepdim=True)
    return (x32 - cut).clamp(min=0).to(x.dtype)


def gated_act(gate_up: Tensor, activation: Gating | Ungated = "silu") -> Tensor:
    """act(gate) * up; gate_up `[..., 2F]` holds gate in its first half and up in its second; returns `[..., F]`.
    `Ungated`: act(up) of `[..., F]`."""
    if isinstance(activation, Ungated):
        return activate(gate_up, activation.activation)
    gate, up = gate_up.chunk(2, dim=-1)
    if isinstance(activation, ClampedSwiGLU):
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
        return gate * torch.sigmoid(activation.alpha * gate) * (up + activation.shift)
    if isinstance(activation, CappedSwiGLU):
        return F.silu(gate).clamp(max=activation.limit) * up.clamp(-activation.limit, activation.limit)
    return activate(gate, activation) * up


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visibility,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q kᵀ) v over the visible keys, query head h reading kv head h // G; scale is 1 / sqrt(D) where
    None. q `[B, H, T, D]`, k `[B, K, S, D]`, v `[B, K, S, V]`; returns `[B, H, T, V]`. `softcap` and `sinks` `[H]` as
    in `spec.GQA`, `slopes` fp32 `[H]` as in `spec.Scores`. `added` `[B, H, T, X]`: to the scores of the keys 0 to X - 1
    positions before each query.
    """
    mask, causal = visible.mask, visible.causal
    if any(each is not None for each in (softcap, sinks, slopes, added)):
        bias = None if slopes is None else slopes.view(k.shape[1], -1, 1, 1) * visible.distances
        if added is not None:
            own = by_distance(added, visible.distances, k.shape[1])
            bias = own if bias is None else bias + own
        return _attention_by_formula(q, k, v, mask, causal, scale or q.shape[-1] ** -0.5, softcap, sinks, bias)
    if q.shape[2] == 1:
        # One query: all G heads of a group see the same keys, so they can stand in the place of G queries
        # and the keys need not be repeated.
        grouped = rearrange(q, "B (K G) 1 D -> B K G D", K=k.shape[1])
        y = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale)
        return rearrange(y, "B K G V -> B (K G) 1 V")
    if mask is not None and mask.dim() == 4 and mask.shape[1] not in (1, q.shape[1]):
        mask = mask.repeat_interleave(q.shape[1] // mask.shape[1], dim=1)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=bool(q.shape[1] != k.shape[1])
    )


def by_distance(added: Tensor, distances: Tensor, groups: int) -> Tensor:
    """What `attention` is to add to scores, `[B, K, G, T, S]`, of `added` `[B, H, T, X]` and `Visibility.distances`; 0
    from a distance of X on."""
    back = (-distances).long()
    back = back if back.dim() == 2 else back.squeeze(1)  # [T, S], or [B, 1, 1, S]
    inside = (back >= 0) & (back < added.shape[-1])
    index = back.where(inside, 0).expand(*added.shape[:-1], -1)
    return added.gather(-1, index).masked_fill(~inside, 0).unflatten(1, (groups, -1))


def latent_attention(
    q: Tensor, latent: Tensor, value_dim: int, visible: Visibility, scale: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`attention` of all heads over one key per position, whose first `value_dim` values are also its value: q
    `[B, H, T, R + P]`, latent `[B, S, R + P]` -> `[B, H, T, R]`."""
    keys = latent.unsqueeze(1)
    return attention(q, keys, keys[..., :value_dim], visible, scale, None, sinks)


def _attention_by_formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    """What PyTorch's op cannot do, score by score in fp32; q's heads are taken as K groups of G."""
    groups = rearrange(q, "B (K G) T D -> B K G T D", K=k.shape[1])
    scores = (groups @ k.unsqueeze(2).transpose(-1, -2)).float() * scale  # [B, K, G, T, S]
    weights = softmax_of_scores(scores, mask, causal, softcap, sinks, bias)
    return rearrange(weights.to(v.dtype) @ v.unsqueeze(2), "B K G T V -> B (K G) T V")


def softmax_of_scores(
    scores: Tensor,
    mask: Tensor | None,
    causal: bool,
    softcap: float | None,
    sinks: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    """What values are weighed with, from scaled scores `[B, K, G, T, S]`; of their shape and dtype. `bias` is added to
    capped scores."""
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~(mask if mask.dim() == 2 else mask.unsqueeze(2)), float("-inf"))
    if sinks is None:
        return scores.softmax(-1)
    extra = sinks.to(scores.dtype).view(scores.shape[1], -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, extra), dim=-1).softmax(-1)[..., :-1]


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: ExpertMatrices,
    down: ExpertMatrices,
    activation: Gating | Ungated,
    biases: tuple[Tensor, Tensor] | None = None,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """For each token n the sum over its experts e = chosen[n, k] of weights[n, k] * down[e] (act(gate[e] x) * up[e] x).

    x `[N, H]`, chosen int64 `[N, k]`, weights fp32 `[N, k]`; gate_up `[E, 2F, H]`, or `[E, F, H]` `Ungated`, and down
    `[E, H, F]`, with `biases` `[E, 2F]` and `[E, H]` that are added to their products. The sum is in fp32, in the order
    of the experts. Returns `[N, H]` in x's dtype. Experts that no token chose are never looked at. `places` as in
    `routing.Routing`: nothing that `chosen` does not say.
    """
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in chosen.unique().tolist():
        token, pick = torch.where(chosen == expert)
        inner, outer = (bias[expert] for bias in biases) if biases else (None, None)
        y = expert_product(gated_act(expert_product(x[token], gate_up, expert, inner), activation), down, expert, outer)
        total.index_add_(0, token, y * weights[token, pick, None])
    return total.to(x.dtype)


def expert_product(
    x: Tensor, matrices: ExpertMatrices | ExpertProducts, expert: int, bias: Tensor | None = None
) -> Tensor:
    """x `[N, I]` times the matrix `[O, I]` of an expert, plus bias; as the matrices do it themselves where they do."""
    if hasattr(matrices, "product"):
        return matrices.product(expert, x, bias)
    return F.linear(x, matrices[expert], bias)


def grouped_linear(
    x: Tensor, parts: Mapping[str, Tensor], made: Grouped, outputs: int, bias: Tensor | None = None
) -> Tensor:
    """y = x Wᵀ + b with the W `[O, I]` that `parts` are in the form `made` (`weights/grouped.py`), O being `outputs`.
    x `[..., I]`, bias `[O]` of x's dtype -> `[..., O]`."""
    return F.linear(x, made.dequantise(parts, x.shape[-1], x.dtype, outputs), bias)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, width: int = fp8.BLOCK) -> Tensor:
    """y = x Wᵀ + b with W of `weights/fp8.py`: e4m3 `[O, I]` and factors fp32 of each row, `[O, I / width]` (rounded
    up), `[O, 1]` where width is 0. x `[..., I]`, bias `[O]` of x's dtype -> `[..., O]`."""
    return F.linear(x, Fp8(width).dequantise({"": weight, "_scale": scale}, x.shape[-1], x.dtype), bias)
