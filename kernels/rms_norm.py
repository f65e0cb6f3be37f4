"""RMSNorm, y = (offset + w) * x * r with r = 1 / sqrt(mean(x²) + eps), in one pass over memory.

Plain PyTorch reads and writes each row about six times (cast, square, mean, scale, cast, weight); here one program
holds a row in registers: one read, one write. Arithmetic is fp32; `before_weight` rounds x * r to the input's type
first, as the Llama family does, else only the product is rounded.

Backward, with g the gradient of y and w' = offset + w:

    dx = r * (g w' - x̂ mean(g w' x̂)),   x̂ = x r
    dw = Σ over rows of g x̂            (each program sums its rows, the few partial sums are added at the end)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of

BACKWARD_PROGRAMS = 256  # partial sums of dw: enough to fill a GPU, few enough to add up cheaply


@triton.jit
def forward_kernel(
    x_ptr, w_ptr, y_ptr, r_ptr, x_stride, y_stride, n, eps, offset, BEFORE_WEIGHT: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
    x32 = x.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(x32 * x32, axis=0) / n + eps)
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(tl.float32) + offset
    normed = x32 * r
    if BEFORE_WEIGHT:
        normed = normed.to(x.dtype).to(tl.float32)
        w = w.to(x.dtype).to(tl.float32)
    tl.store(y_ptr + row * y_stride + columns, (normed * w).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(r_ptr + row, r)


@triton.jit
def backward_kernel(
    g_ptr, x_ptr, w_ptr, r_ptr, dx_ptr, dw_ptr, x_stride, rows, n, offset, rows_each, BLOCK: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(tl.float32) + offset
    dw = tl.zeros((BLOCK,), dtype=tl.float32)
    first = program * rows_each
    for row in range(first, tl.minimum(first + rows_each, rows)):
        g = tl.load(g_ptr + row * n + columns, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(r_ptr + row)
        normed = x * r
        gw = tl.where(inside, g * w, 0.0)
        dx = r * (gw - normed * (tl.sum(gw * normed, axis=0) / n))
        tl.store(dx_ptr + row * n + columns, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dw += g * normed
    tl.store(dw_ptr + program * n + columns, dw, mask=inside)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, offset, before_weight):
        rows = _rows(x)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        r = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
        n = x.shape[-1]
        block = triton.next_power_of_2(n)
        warps = min(max(block // 256, 1), 16)
        if rows.shape[0]:
            grid = (rows.shape[0],)
            forward_kernel[grid](
                rows, weight, y, r, rows.stride(0), n, n, eps, offset, before_weight, block, num_warps=warps
            )
        ctx.save_for_backward(rows, weight, r)
        ctx.offset, ctx.block, ctx.warps = offset, block, warps
        return y

    @staticmethod
    def backward(ctx, g):
        rows, weight, r = ctx.saved_tensors
        count, n = rows.shape
        programs = max(min(count, BACKWARD_PROGRAMS), 1)
        each = triton.cdiv(count, programs)
        dx = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        dw = torch.zeros(programs, n, dtype=torch.float32, device=rows.device)
        if count:
            backward_kernel[(programs,)](
                g.contiguous(), rows, weight, r, dx, dw, rows.stride(0), count, n, ctx.offset, each, ctx.block,
                num_warps=ctx.warps,
            )  # fmt: skip
        return dx.view(g.shape), dw.sum(0).to(weight.dtype), None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: str = "before_weight") -> Tensor:
    """x `[..., N]` float, last dimension contiguous; weight `[N]` contiguous; returns x's shape and dtype.

    Raises ValueError for shapes, strides or devices the kernel does not take.
    """
    if weight.shape != x.shape[-1:] or not weight.is_contiguous():
        raise ValueError(f"rms_norm: weight is {list(weight.shape)}, expected contiguous [{x.shape[-1]}]")
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"rms_norm: the last dimension of x has stride {x.stride(-1)}, expected 1")
    if weight.device != x.device:
        raise ValueError(f"rms_norm: x is on {x.device}, weight on {weight.device}")
    if cast not in ("before_weight", "after_weight"):
        raise ValueError(f"rms_norm: cast is {cast!r}, expected 'before_weight' or 'after_weight'")
    with on_device_of(x):
        return _RMSNorm.apply(x, weight, eps, offset, cast == "before_weight")


def _rows(x: Tensor) -> Tensor:
    """`[..., N]` as `[rows, N]`, without a copy where the strides allow it."""
    return x.reshape(-1, x.shape[-1])
