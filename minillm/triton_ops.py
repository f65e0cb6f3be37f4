"""The Triton kernels behind the seam: what the model's calls become. Importing this needs the package triton."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm import grouped, reference
from minillm.kernels import attention as prefill
from minillm.kernels import attention_backward, decode_attention, gated_act, mla_decode, rms_norm, rope
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
    first = visible.padding_B
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (q, k, v, sinks)):
        run = attention_backward.differentiable_attention
    elif visible.count == 1:
        ring = k.shape[2] and visible.window if visible.ring else 0
        return decode_attention.decode_attention(
            q.squeeze(2), k, v, None, first, None, ring or 0, visible.start, None, scale, softcap, sinks
        ).unsqueeze(2)
    else:
        run = prefill.attention
    past = visible.start - visible.first_key
    found = run(q, k, v, past, visible.window, first, visible.first_key, scale, softcap, sinks)
    return found[0] if isinstance(found, tuple) else found


def latent_attention(
    q: Tensor, latent: Tensor, value_dim: int, visible: Visibility, scale: float | None = None
) -> Tensor:
    """`reference.latent_attention`, of which decoding one query per sequence is the form that the model uses."""
    if visible.count > 1 or (torch.is_grad_enabled() and (q.requires_grad or latent.requires_grad)):
        return reference.latent_attention(q, latent, value_dim, visible, scale)
    y = mla_decode.mla_decode(q.squeeze(2), latent, value_dim, None, visible.padding_B, None, scale)
    return y.unsqueeze(2)


OPS = {
    "rms_norm": rms_norm.rms_norm,
    "rope": rope.rope,
    "gated_act": gated_act.gated_act,
    "attention": attention,
    "latent_attention": latent_attention,
    "experts": grouped.experts,
}
