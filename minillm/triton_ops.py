"""The Triton kernels behind the seam: what the model's calls become. Importing this needs the package triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm import reference
from minillm.kernels import attention as prefill
from minillm.kernels import attention_backward, decode_attention, gated_act, mla_decode, moe, rms_norm, rope
from minillm.visibility import Visibility


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visibility,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`reference.attention`: one query per sequence goes over the cache in parts, several in blocks."""
    first, past = visible.padding_B, visible.start - visible.first_key
    where = (past, visible.window, first, visible.first_key)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (q, k, v, sinks)):
        return attention_backward.differentiable_attention(q, k, v, *where, scale, softcap, sinks)
    if visible.count == 1:
        ring = visible.window if visible.ring else 0
        return decode_attention.decode_attention(
            q.squeeze(2), k, v, None, first, None, ring or 0, visible.start, None, scale, softcap, sinks
        ).unsqueeze(2)
    return prefill.attention(q, k, v, *where, scale, softcap, sinks)[0]


def latent_attention(
    q: Tensor, latent: Tensor, value_dim: int, visible: Visibility, scale: float | None = None
) -> Tensor:
    """`reference.latent_attention`, of which decoding one query per sequence is the form that the model uses."""
    if visible.count > 1 or (torch.is_grad_enabled() and (q.requires_grad or latent.requires_grad)):
        return reference.latent_attention(q, latent, value_dim, visible, scale)
    y = mla_decode.mla_decode(q.squeeze(2), latent, value_dim, None, visible.padding_B, None, scale)
    return y.unsqueeze(2)


def experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Any, down: Any, *rest: Any) -> Tensor:
    """`reference.experts`; what is dequantised as it is asked for, and what needs gradients, goes through that."""
    tensors = isinstance(gate_up, Tensor) and isinstance(down, Tensor)
    if not tensors or (torch.is_grad_enabled() and any(each.requires_grad for each in (x, weights, gate_up, down))):
        return reference.experts(x, chosen, weights, gate_up, down, *rest)
    return moe.experts(x, chosen, weights, gate_up, down, *rest)


OPS: dict[str, Callable[..., Tensor]] = {
    "rms_norm": rms_norm.rms_norm,
    "rope": rope.rope,
    "gated_act": gated_act.gated_act,
    "attention": attention,
    "latent_attention": latent_attention,
    "experts": experts,
}
