"""Fused act(gate) * up for SwiGLU and GeGLU, where `[..., 2F]` holds gate in its first half and up in its second.

Plain PyTorch writes act(gate) to memory and reads it back; here both halves are read once and the product is written
once: 3 F values moved instead of 5 F. Backward recomputes the activation from the input rather than keeping it:

    d_up = g act(gate),   d_gate = g up act'(gate)

or with the clamped SwiGLU of gpt-oss, whose other factor is not up alone,

    g = min(gate, limit), u = clamp(up, ±limit):  g sigmoid(alpha g) * (u + 1)

or with that of Step 3.5, min(silu(gate), limit) * clamp(up, ±limit).

    silu(z) = z s, s = 1 / (1 + e^-z)            silu'(z) = s (1 + z (1 - s))
    gelu(z) = z Φ(z)                             gelu'(z) = Φ(z) + z φ(z)
    gelu_tanh(z) = z t, t = sigmoid(2 u(z)),     gelu_tanh'(z) = t + z t (1 - t) 2 u'(z),  u = √(2/π) (z + 0.044715 z³)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
CLAMPED, CAPPED = 3, 4
BLOCK = 1024


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """act(z) and act'(z)."""
    if ACTIVATION == 0:
        s = tl.sigmoid(z)
        value = z * s
        slope = s * (1.0 + z * (1.0 - s))
    elif ACTIVATION == 1:
        chance = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        value = z * chance
        slope = chance + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    else:
        t = tl.sigmoid(2.0 * 0.7978845608028654 * (z + 0.044715 * z * z * z))
        value = z * t
        slope = t + z * t * (1.0 - t) * 2.0 * 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * z * z)
    return value, slope


@triton.jit
def factors(gate, up, alpha, limit, ACTIVATION: tl.constexpr):
    """The two factors of the result, and the derivative of each by its own input."""
    if ACTIVATION == 3:
        g = tl.minimum(gate, limit)
        s = tl.sigmoid(alpha * g)
        value = g * s
        slope = tl.where(gate <= limit, s * (1.0 + alpha * g * (1.0 - s)), 0.0)
        other = tl.minimum(tl.maximum(up, -limit), limit) + 1.0
        other_slope = tl.where(tl.abs(up) <= limit, 1.0, 0.0)
    elif ACTIVATION == 4:
        value, slope = activate(gate, 0)
        slope = tl.where(value <= limit, slope, 0.0)
        value = tl.minimum(value, limit)
        other = tl.minimum(tl.maximum(up, -limit), limit)
        other_slope = tl.where(tl.abs(up) <= limit, 1.0, 0.0)
    else:
        value, slope = activate(gate, ACTIVATION)
        other = up
        other_slope = 1.0
    return value, slope, other, other_slope


@triton.jit
def forward_kernel(
    x_ptr, y_ptr, x_stride, features, alpha, limit, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < features
    gate = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + features + column, mask=inside, other=0.0).to(tl.float32)
    value, _, other, _ = factors(gate, up, alpha, limit, ACTIVATION)
    tl.store(y_ptr + row * features + column, (value * other).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    g_ptr, x_ptr, dx_ptr, x_stride, features, alpha, limit, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < features
    gate = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + features + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + row * features + column, mask=inside, other=0.0).to(tl.float32)
    value, slope, other, other_slope = factors(gate, up, alpha, limit, ACTIVATION)
    kind = dx_ptr.dtype.element_ty
    tl.store(dx_ptr + row * 2 * features + column, (g * other * slope).to(kind), mask=inside)
    tl.store(dx_ptr + row * 2 * features + features + column, (g * value * other_slope).to(kind), mask=inside)


class _GatedAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up, activation, alpha, limit):
        x = gate_up.reshape(-1, gate_up.shape[-1])
        features = x.shape[-1] // 2
        y = torch.empty(*gate_up.shape[:-1], features, dtype=x.dtype, device=x.device)
        if y.numel():
            grid = (x.shape[0], triton.cdiv(features, BLOCK))
            forward_kernel[grid](x, y, x.stride(0), features, alpha, limit, activation, BLOCK)
        ctx.save_for_backward(x)
        ctx.constants = (alpha, limit, activation)
        return y

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        features = x.shape[-1] // 2
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if dx.numel():
            grid = (x.shape[0], triton.cdiv(features, BLOCK))
            backward_kernel[grid](g.contiguous(), x, dx, x.stride(0), features, *ctx.constants, BLOCK)
        return dx.view(*g.shape[:-1], 2 * features), None, None, None


def gated_act(gate_up: Tensor, activation="silu") -> Tensor:
    """gate_up `[..., 2F]` float with a contiguous last dimension -> `[..., F]`. `activation` is a name, or for a
    clamped SwiGLU what has its alpha and limit, or its limit alone where the clamp stands behind the activation.

    Raises ValueError for an odd width, a strided last dimension or an unknown activation.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gated_act: the last dimension has {gate_up.shape[-1]} values, expected an even number")
    if gate_up.stride(-1) != 1:
        raise ValueError(f"gated_act: the last dimension has stride {gate_up.stride(-1)}, expected 1")
    constants = constants_of(activation)
    with on_device_of(gate_up):
        return _GatedAct.apply(gate_up, *constants)


def constants_of(activation) -> tuple[int, float, float]:
    """What the kernels take for an activation: its number, alpha and limit. Raises ValueError for an unknown one."""
    if not isinstance(activation, str):
        behind = not hasattr(activation, "alpha")
        return (CAPPED, 0.0, activation.limit) if behind else (CLAMPED, activation.alpha, activation.limit)
    if activation not in ACTIVATIONS:
        raise ValueError(f"gated_act: activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation], 0.0, 0.0
