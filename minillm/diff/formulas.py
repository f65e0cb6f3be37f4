"""What parts of a module should give, by the formulas of their specs, in fp64: for `replay.py`.

Shapes: B batch, T tokens, H heads, D head_dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minillm.model.attention import GroupedQueryAttention, tempered
from minillm.model.linear import Linear
from minillm.model.mla import LatentAttention
from minillm.model.norm import LayerNorm, NoNorm, Norm
from minillm.model.rope import Rotary
from minillm.ops import reference
from minillm.spec import Rope


def product(x: Tensor, linear: Linear) -> Tensor:
    return F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())


def normed(x: Tensor, norm: Norm | LayerNorm | NoNorm) -> Tensor:
    """The norm in fp64."""
    x = x.double()
    if isinstance(norm, NoNorm):
        return x
    if isinstance(norm, LayerNorm):
        weight, bias = (None if each is None else each.double() for each in (norm.weight, norm.bias))
        y = F.layer_norm(x, x.shape[-1:], eps=norm.spec.eps)
        y = y if weight is None else y * (norm.spec.offset + weight)
        return y if bias is None else y + bias
    own = 1.0 if norm.weight is None else norm.spec.offset + norm.weight.double()
    return own * x * torch.rsqrt(x.square().mean(-1, True) + norm.spec.eps)


def aligned(theirs: Tensor, exact: Tensor, attention: GroupedQueryAttention | LatentAttention) -> Tensor | None:
    """The reference's values in our order: it may keep the pairs of an interleaved rotation apart, as halves."""
    if theirs.shape != exact.shape:
        return None
    if not isinstance(rope := attention.spec.rope, Rope) or rope.layout == "half" or theirs.shape[-1] < rope.dim:
        return theirs
    rotated = rope.dim
    first = theirs.shape[-1] - rotated if isinstance(attention, LatentAttention) else 0
    middle = theirs[..., first : first + rotated]
    paired = torch.cat(
        (
            theirs[..., :first],
            middle.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2),
            theirs[..., first + rotated :],
        ),
        dim=-1,
    )
    return min((theirs, paired), key=lambda each: (each.double() - exact).abs().max().item())


def exact_qkv(attention: Any, x: Tensor) -> tuple[Tensor, ...]:
    """q, k and v in fp64 as they go into the scores, `[B, heads, T, D]`; q alone where the others are not its own."""
    spec, count = attention.spec, x.shape[1]
    turn = lambda each: each  # noqa: E731
    if isinstance(spec.rope, Rope):
        cos, sin = Rotary(spec.rope)(torch.arange(count, device=x.device)[None], (count,), torch.float64)
        turn = lambda each: reference.rope(each, cos, sin, spec.rope.layout)  # noqa: E731
    if isinstance(attention, GroupedQueryAttention):
        qkv = attention.gated(product(x, attention.qkv))[0]
        if spec.kv.layer is not None:
            qkv = F.pad(qkv, (0, 2 * spec.num_kv_heads * spec.head_dim))  # of another layer
        if attention.conv is not None:
            alone, kv = qkv.split((spec.num_heads * spec.head_dim, attention.conv.spec.channels), dim=-1)
            weight = attention.conv.weight.double()
            padded = F.pad(kv.transpose(1, 2), (weight.shape[1] - 1, 0))
            kv = kv + F.conv1d(padded, weight[:, None], groups=len(weight)).transpose(1, 2)
            qkv = torch.cat((alone, kv), dim=-1)
        q, k, v = attention.heads(qkv)
        v = normed(v, attention.v_norm) * spec.kv.v_scale
        for_norm = (lambda each: each.flatten(2)) if attention.normed_together else (lambda each: each)
        before, behind = (turn, lambda each: each) if attention.turned_first else (lambda each: each, turn)
        clip = math.inf if spec.clip is None else spec.clip

        def placed(each: Tensor, norm: Any) -> Tensor:
            return behind(normed(for_norm(before(each)), norm).view_as(each).clamp(-clip, clip))

        q = placed(q, attention.q_norm)
        if (temperature := spec.scores.temperature) is not None:
            q = q * tempered(torch.arange(count, device=x.device), temperature).double()[:, None, None]
        if spec.kv.layer is not None:
            return (q.transpose(1, 2),)
        k, v = placed(k, attention.k_norm), v.clamp(-clip, clip)
    else:
        latent = x if spec.q_rank is None else normed(product(x, attention.q_down), attention.q_norm)
        q = rearrange(product(latent, attention.q), "B T (H D) -> B T H D", H=spec.num_heads)
        q = torch.cat((q[..., : spec.nope_dim], turn(q[..., spec.nope_dim :])), dim=-1)
        if spec.temperature is not None:
            q = q * tempered(torch.arange(count, device=x.device), spec.temperature).double()[:, None, None]
        c, k_rope = product(x, attention.kv_down).split((spec.kv_rank, spec.rope.dim), dim=-1)
        kv = F.linear(normed(c, attention.kv_norm), attention.kv_up.double())
        kv = rearrange(kv, "B T (H D) -> B T H D", H=spec.num_heads)
        k_rope = turn(k_rope.unsqueeze(2)).expand(-1, -1, spec.num_heads, -1)
        k, v = torch.cat((kv[..., : spec.nope_dim], k_rope), dim=-1), kv[..., spec.nope_dim :]
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return q, k, v
