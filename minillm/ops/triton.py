"""The Triton kernels behind the seam: what the model's calls become. Importing this needs the package triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm import spec
from minillm.kernels import attention as prefill
from minillm.kernels import (
    attention_backward,
    cross_entropy,
    decode_attention,
    delta_step,
    fused_norm,
    gated_act,
    grouped_linear,
    mla_decode,
    moe,
    rms_norm,
    rope,
    routing,
    sampling,
)
from minillm.kernels import delta_rule as rule_kernel
from minillm.kernels import fp8_linear as fp8_kernel
from minillm.ops import paged, recurrent, reference
from minillm.ops import routing as plain_routing
from minillm.ops.ones import ones
from minillm.ops.paged import Paged
from minillm.ops.visibility import Visibility
from minillm.spec import Ungated
from minillm.weights import fp8
from minillm.weights.grouped import Grouped, Parts


def differentiable(*tensors: Any) -> bool:
    """Whether a result of these needs gradients, which the kernels for inference do not give."""
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in tensors)


def for_inference(kernel: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, or the plain version where gradients are wanted, which the kernel has none of."""

    def run(*given: Any, **named: Any) -> Any:
        return (plain if differentiable(*given, *named.values()) else kernel)(*given, **named)

    return run


def norm(x: Tensor, weight: Tensor | None, eps: float, offset: float = 0.0, *cast: Any) -> Tensor:
    """`reference.rms_norm`."""
    if weight is None:
        weight, offset = ones(x.shape[-1], x.dtype, x.device), 0.0
    return rms_norm.rms_norm(x, weight, eps, offset, *cast)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """`reference.add_rms_norm`; with gradients sum and norm by themselves."""
    if differentiable(x, residual, weight):
        s = x + residual
        return rms_norm.rms_norm(s, weight, *rest), s
    return fused_norm.add_rms_norm(x, residual, weight, *rest)


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
    """`reference.attention`: one query per sequence goes over the cache in parts, several in blocks. With slopes, what
    is added by distance, several documents in a row, chosen keys and where queries look ahead, that itself."""
    if any(each is not None for each in (visible.starts_BT, visible.last_T, visible.chosen, slopes, added)):
        return reference.attention(q, k, v, visible, scale, softcap, sinks, slopes, added)
    first, past = visible.padding_B, visible.start - visible.first_key
    where = (past, visible.window, first, visible.first_key)
    if differentiable(q, k, v, sinks):
        return attention_backward.differentiable_attention(q, k, v, *where, scale, softcap, sinks)
    if visible.count == 1:
        ring = visible.window if visible.ring else 0
        return decode_attention.decode_attention(
            q.squeeze(2), k, v, visible.lengths_B, first, None, ring or 0, visible.start, None, scale, softcap, sinks
        ).unsqueeze(2)
    return prefill.attention(q, k, v, *where, scale, softcap, sinks)[0]


def latent_attention(
    q: Tensor, latent: Tensor, value_dim: int, visible: Visibility, scale: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`reference.latent_attention`, of which decoding one query per sequence is the form that the model uses."""
    if visible.count > 1 or visible.chosen is not None or differentiable(q, latent, sinks):
        return reference.latent_attention(q, latent, value_dim, visible, scale, sinks)
    seen = visible.lengths_B, visible.padding_B, None
    y = mla_decode.mla_decode(q.squeeze(2), latent, value_dim, *seen, scale, sinks)
    return y.unsqueeze(2)


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, pages: Paged, scale: float | None = None, softcap: float | None = None,
    sinks: Tensor | None = None, slopes: Tensor | None = None, added: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`paged.paged_attention`; with slopes, or what is added by distance, that itself."""
    if slopes is not None or added is not None:
        return paged.paged_attention(q, k, v, pages, scale, softcap, sinks, slopes, added)
    keys, values = (
        each[0].unflatten(1, (-1, pages.size)).permute(1, 2, 0, 3) for each in (k, v)
    )  # [blocks, size, K, D]
    y = decode_attention.decode_attention(
        q[0].transpose(0, 1), keys, values, pages.lengths, pages.first, block_table=pages.tables, scale=scale,
        softcap=softcap, sinks=sinks,
    )  # fmt: skip
    return y.transpose(0, 1)[None]


def paged_latent_attention(
    q: Tensor, latent: Tensor, value_dim: int, pages: Paged, scale: float | None = None, sinks: Tensor | None = None
) -> Tensor:
    """`paged.paged_latent_attention`."""
    blocks, given = latent[0].unflatten(0, (-1, pages.size)), q[0].transpose(0, 1)
    y = mla_decode.mla_decode(given, blocks, value_dim, pages.lengths, pages.first, pages.tables, scale, sinks)
    return y.transpose(0, 1)[None]


def route(logits: Tensor, correction: Tensor | None, router: spec.Router) -> plain_routing.Routing:
    """`routing.route`; SparseMixer, whose picks depend on each other, and what needs gradients go through that."""
    if router.score in ("sparsemixer", "sqrt_softplus") or differentiable(logits):
        return plain_routing.route(logits, correction, router)
    scored = plain_routing.standardised(logits) if router.normalize == "logits" else logits
    groups = (router.num_groups, router.top_groups, router.group_score)
    weighing = (router.score, router.renormalize, router.scale)
    chosen, weights, places = routing.route(scored, correction, router.top_k, *weighing, *groups)
    return plain_routing.Routing(chosen, weights, logits, places)


_experts = for_inference(moe.experts, reference.experts)


def takes_activation(activation: Any) -> bool:
    """Whether the kernels have it: not without a gate, nor clamped with another shift than 1."""
    return not isinstance(activation, Ungated) and getattr(activation, "shift", 1) == 1


def gate(gate_up: Tensor, activation: Any = "silu") -> Tensor:
    """`reference.gated_act`, and that itself for what the kernel has not."""
    return (gated_act.gated_act if takes_activation(activation) else reference.gated_act)(gate_up, activation)


def experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Any, down: Any, *rest: Any) -> Tensor:
    """`reference.experts`, and that itself for activations that the kernels have not, and matrices that are dequantised
    as they are asked for."""
    takes = isinstance(gate_up, Tensor) and isinstance(down, Tensor) and takes_activation(rest[0])
    return (_experts if takes else reference.experts)(x, chosen, weights, gate_up, down, *rest)


_grouped = for_inference(grouped_linear.grouped_linear, reference.grouped_linear)


def grouped_product(x: Tensor, parts: Parts, made: Grouped, outputs: int, bias: Tensor | None = None) -> Tensor:
    """`reference.grouped_linear`, and that itself for tiles of several rows and for groups that the kernel cannot
    tell apart by words."""
    fits = made.tile == 1 and made.group % grouped_linear.GROUP == 0
    return (_grouped if fits else reference.grouped_linear)(x, parts, made, outputs, bias)


_fp8_linear = for_inference(fp8_kernel.fp8_linear, reference.fp8_linear)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, width: int = fp8.BLOCK) -> Tensor:
    """`reference.fp8_linear`, and that itself where a factor is for other than 128 columns."""
    if width != fp8.BLOCK:
        return reference.fp8_linear(x, weight, scale, bias, width)
    return _fp8_linear(x, weight, scale, bias)


_delta_rule = for_inference(rule_kernel.delta_rule, recurrent.delta_rule)


def delta_rule(*given: Tensor) -> tuple[Tensor, Tensor]:
    """`recurrent.delta_rule`; what comes out of PyTorch's convolution has its positions side by side."""
    return _delta_rule(*(each if each.stride(-1) == 1 else each.contiguous() for each in given))


OPS: dict[str, Any] = {
    "rms_norm": norm,
    "add_rms_norm": add_rms_norm,
    "rope": rope.rope,
    "qk_norm_rope_cache": for_inference(fused_norm.qk_norm_rope_cache, reference.qk_norm_rope_cache),
    "gated_act": gate,
    "attention": attention,
    "latent_attention": latent_attention,
    "paged_attention": paged_attention,
    "paged_latent_attention": paged_latent_attention,
    "delta_rule": delta_rule,
    "delta_step": for_inference(delta_step.delta_step, recurrent.delta_step),
    "route": route,
    "experts": experts,
    "grouped_linear": grouped_product,
    "fp8_linear": fp8_linear,
    "linear_cross_entropy": cross_entropy.linear_cross_entropy,
    "sample": sampling.sample,
}
