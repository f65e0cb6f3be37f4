"""The seam's ops on a CPU: the compiled loops of `minillm/cpu/` where they are faster, PyTorch elsewhere.

Each falls back to the plain version, which is always right, for what its loop does not take: gradients, other dtypes,
many rows (whose products oneDNN does best), matrices that do not lie one row behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minillm import grouped, reference
from minillm.cpu import attention as attending
from minillm.cpu import experts as expert_loops
from minillm.cpu import pointwise, prefill
from minillm.cpu.dots import NATIVE_BF16
from minillm.cpu.jit import LIKE, address
from minillm.cpu.linear import linear as multiply
from minillm.quantised import Int4Matrices, Int8Matrices
from minillm.spec import Activation, ClampedSwiGLU, NormCast, RopeLayout
from minillm.visibility import Visibility

FEW_ROWS = 16  # more are oneDNN's
INT8, INT4 = np.empty(0, np.int8), np.empty(0, np.uint8)


def plain(*tensors: Tensor | None) -> bool:
    """Whether a loop can run over these: of one dtype that it knows, contiguous, and not to be differentiated."""
    given = [each for each in tensors if each is not None]
    tracked = torch.is_grad_enabled() and any(each.requires_grad for each in given)
    dtype = given[0].dtype
    return dtype in LIKE and not tracked and all(each.dtype == dtype and each.is_contiguous() for each in given)


def _product(x: Tensor, matrix: tuple[Any, ...], like: Any, outputs: int, bias: Tensor | None) -> Tensor:
    inputs = x.shape[-1]
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype)
    if y.numel():
        given = (address(x), matrix, address(bias), address(y))
        multiply(*given, x.numel() // inputs, inputs, outputs, LIKE[x.dtype], like)
    return y


def _located(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.data_ptr(), x.numel())


def _laid(
    weight: Tensor,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    factor: Tensor | None = None,
    group: int = 1,
) -> tuple[Any, ...]:
    """A matrix as the loops take it."""
    return (*_located(weight), *_located(scale), *_located(zero), *_located(factor), group)


def few(x: Tensor) -> bool:
    return 0 < x.numel() <= FEW_ROWS * x.shape[-1]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.linear`."""
    if few(x) and plain(x, weight, bias):
        return _product(x, _laid(weight), LIKE[x.dtype], len(weight), bias)
    return F.linear(x, weight, bias)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.int8_linear`."""
    if few(x) and plain(x, bias) and plain(scale) and weight.is_contiguous():
        return _product(x, _laid(weight, factor=scale), INT8, len(weight), bias)
    return reference.int8_linear(x, weight, scale, bias)


def int4_linear(
    x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int, bias: Tensor | None = None,
    factor: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`reference.int4_linear`."""
    if few(x) and plain(x, bias) and _known_int4(packed, scale, zero, factor, group):
        return _product(x, _laid(packed, scale, zero, factor, group), INT4, len(packed), bias)
    return reference.int4_linear(x, packed, scale, zero, group, bias, factor)


def _known_int4(packed: Tensor, scale: Tensor, zero: Tensor | None, factor: Tensor | None, group: int) -> bool:
    """Whether the loops take this format: int8 scales, uint8 zeros, and groups of 16, 32, 64, 128, …"""
    parts = (packed, torch.uint8), (scale, torch.int8), (zero, torch.uint8), (factor, torch.float32)
    known = all(each is None or (each.dtype == dtype and each.is_contiguous()) for each, dtype in parts)
    return known and factor is not None and group >= 16 and group & (group - 1) == 0


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: NormCast = "before_weight") -> Tensor:
    """`reference.rms_norm`."""
    if not (few(x) and plain(x, weight)):
        return reference.rms_norm(x, weight, eps, offset, cast)
    return _normed(x, None, weight, eps, offset, cast)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: NormCast = "before_weight"
) -> tuple[Tensor, Tensor]:
    """`reference.add_rms_norm`."""
    if not (few(x) and plain(x, residual, weight)):
        return reference.add_rms_norm(x, residual, weight, eps, offset, cast)
    return _normed(x, residual, weight, eps, offset, cast)


def _normed(x: Tensor, residual: Tensor | None, weight: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    y, s = torch.empty_like(x), x if residual is None else torch.empty_like(x)
    size = len(weight)
    at = [address(each) for each in (x, residual, s, weight, y)]
    pointwise.rms_norm(*at, x.numel() // size, size, _norm_numbers(*numbers), LIKE[x.dtype])
    return y, s


def _norm_numbers(eps: float, offset: float, cast: NormCast) -> tuple[Any, Any, bool]:
    return np.float32(eps), np.float32(offset), cast == "before_weight"


def gated_act(gate_up: Tensor, activation: Activation | ClampedSwiGLU = "silu") -> Tensor:
    """`reference.gated_act`."""
    numbers = _activation(activation)
    if not (numbers and gate_up.numel() and plain(gate_up)):
        return reference.gated_act(gate_up, activation)
    inner = gate_up.shape[-1] // 2
    y = torch.empty(*gate_up.shape[:-1], inner, dtype=gate_up.dtype)
    pointwise.gated_act(address(gate_up), address(y), y.numel() // inner, inner, numbers, LIKE[y.dtype])
    return y


def _activation(activation: Activation | ClampedSwiGLU) -> tuple[int, Any, Any] | None:
    """What the loops call an activation; None for one that they do not have."""
    if isinstance(activation, ClampedSwiGLU):
        return pointwise.CLAMPED, np.float32(activation.limit), np.float32(activation.alpha)
    kinds = {"silu": pointwise.SILU, "gelu_tanh": pointwise.GELU_TANH}
    return (kinds[activation], np.float32(0), np.float32(0)) if activation in kinds else None


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
    """`reference.qk_norm_rope_cache`."""
    given = (qkv, k_cache, v_cache, cos, sin, q_weight, k_weight)
    if not (plain(*given) and slots.is_contiguous()):
        rest = (layout, q_weight, k_weight, eps, offset, cast)
        return reference.qk_norm_rope_cache(qkv, num_heads, k_cache, v_cache, slots, cos, sin, *rest)
    batch, steps, _ = qkv.shape
    _, kv_heads, capacity, size = k_cache.shape
    q = torch.empty(batch, steps, num_heads, size, dtype=qkv.dtype)
    at = tuple(address(each) for each in (qkv, q, k_cache, v_cache, slots, cos, sin, q_weight, k_weight))
    sizes = (steps, num_heads, kv_heads, size, capacity, cos.shape[-1], layout == "half")
    numbers = _norm_numbers(eps, offset, cast)
    pointwise.qk_norm_rope_cache(at, batch, len(slots), len(cos), sizes, numbers, LIKE[qkv.dtype])
    return q.transpose(1, 2)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visibility,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`reference.attention`."""
    rows = q.transpose(1, 2)
    rows = rows if rows.is_contiguous() else rows.contiguous()
    if _slots(k) and _slots(v) and q.dtype == k.dtype == v.dtype and plain(rows, sinks):
        if few_queries(q):
            return _attend(rows, k, v, visible, scale, softcap, sinks)
        if NATIVE_BF16 and q.dtype == torch.bfloat16 and sinks is None and not (q.shape[3] % 2 or v.shape[3] % 64):
            return _attend_prompt(rows, k, v, visible, scale, softcap)
    return reference.attention(q, k, v, visible, scale, softcap, sinks)


def latent_attention(
    q: Tensor, latent: Tensor, value_dim: int, visible: Visibility, scale: float | None = None
) -> Tensor:
    """`reference.latent_attention`."""
    keys = latent.unsqueeze(1)
    return attention(q, keys, keys[..., :value_dim], visible, scale)


def few_queries(q: Tensor) -> bool:
    return 0 < q.shape[2] <= FEW_ROWS and q.shape[0] > 0


def _slots(x: Tensor) -> int:
    """How many rows lie from one head of `[B, K, S, D]` to the next; 0 where that is no whole and constant number."""
    batch, heads, count, size = x.shape
    row, lane = x.stride(2), x.stride(1) if heads > 1 else x.stride(0) if batch > 1 else count * x.stride(2)
    whole = x.stride(3) == 1 and row >= size and lane % row == 0
    return lane // row if whole and (batch == 1 or heads == 1 or x.stride(0) == heads * lane) else 0


def _attend(
    q: Tensor, k: Tensor, v: Tensor, visible: Visibility, scale: float | None, softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, steps, heads, k_size = q.shape
    y = torch.empty(batch, steps, heads, v.shape[-1], dtype=q.dtype)
    first, last = (each.expand(batch, steps).contiguous() for each in visible.spans)
    at = [address(each) for each in (q, k, v, sinks, y, first, last)]
    sizes = (steps, heads, k.shape[1], k_size, v.shape[-1], _slots(k), _slots(v), k.stride(2), v.stride(2))
    ring = visible.window if visible.ring else None
    longest = min(visible.start + visible.count, visible.window or visible.start + visible.count)
    places = (ring or 0, visible.first_key, -(-longest // attending.CHUNK))
    numbers = np.float32(k_size**-0.5 if scale is None else scale), np.float32(softcap or 0)
    attending.attention(*at, batch, sizes, places, *numbers, LIKE[q.dtype])
    return y.transpose(1, 2)


def _attend_prompt(
    q: Tensor, k: Tensor, v: Tensor, visible: Visibility, scale: float | None, softcap: float | None
) -> Tensor:
    batch, steps, heads, k_size = q.shape
    y = torch.empty(batch, steps, heads, v.shape[-1], dtype=q.dtype)
    first, last = (each.expand(batch, steps).contiguous() for each in visible.spans)
    at = [address(each) for each in (q, k, v, y, first, last)]
    sizes = (steps, heads, k.shape[1], k_size, v.shape[-1], k.shape[2])
    strides = (_slots(k) * k.stride(2), _slots(v) * v.stride(2), k.stride(2), v.stride(2))
    numbers = np.float32(k_size**-0.5 if scale is None else scale), np.float32(softcap or 0)
    prefill.attention(*at, batch, sizes, strides, visible.first_key, *numbers, LIKE[q.dtype])
    return y.transpose(1, 2)


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: Any,
    down: Any,
    activation: Activation | ClampedSwiGLU,
    biases: tuple[Tensor, Tensor] | None = None,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`reference.experts`."""
    numbers, into, out_of = _activation(activation), _matrices(gate_up), _matrices(down)
    fits = few(x) and plain(x, *(biases or ())) and plain(weights) and chosen.is_contiguous()
    if not (numbers and into and out_of and fits):
        return grouped.experts(x, chosen, weights, gate_up, down, activation, biases, places)
    hidden, inner = x.shape[1], _stored(gate_up).shape[1] // 2
    y = torch.empty_like(x)
    at = [address(each) for each in (x, chosen, weights, y)]
    bias_at = tuple(number for each in biases or (None, None) for number in _located(each))
    sizes = (len(x), chosen.shape[1], hidden, inner)
    expert_loops.experts(*at, into[0], out_of[0], bias_at, sizes, numbers, LIKE[x.dtype], into[1])
    return y


def _stored(matrices: Any) -> Tensor:
    """The numbers of stacked matrices, `[E, O, …]`."""
    if isinstance(matrices, Int4Matrices):
        return matrices.packed
    return matrices if isinstance(matrices, Tensor) else matrices.weight


def _matrices(matrices: Any) -> tuple[tuple[Any, ...], Any] | None:
    """Stacked matrices as the loops take them, and the type of their numbers; None for what they do not know."""
    if isinstance(matrices, Tensor):
        return (_laid(matrices), LIKE[matrices.dtype]) if plain(matrices) else None
    if isinstance(matrices, Int8Matrices):
        return _laid(matrices.weight, factor=matrices.scale), INT8
    if isinstance(matrices, Int4Matrices):
        parts = matrices.packed, matrices.scale, matrices.zero, matrices.factor, matrices.group
        return (_laid(*parts), INT4) if _known_int4(*parts) else None
    return None


OPS: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "qk_norm_rope_cache": qk_norm_rope_cache,
    "gated_act": gated_act,
    "attention": attention,
    "latent_attention": latent_attention,
    "experts": experts,
    "int8_linear": int8_linear,
    "int4_linear": int4_linear,
}
