"""Rotary embedding: (a, b) -> (a cos - b sin, b cos + a sin) for each pair of a head's first R values.

Plain PyTorch makes four products, two sums and a concatenation, each a trip to memory. Here a program takes up to 16
heads of one token: cos and sin are read once for all of them, x is read once and written once. `half` pairs value i
with i + R/2, `interleaved` 2i with 2i + 1; values from R on are copied. The rotation by the opposite angle undoes it,
so the backward pass is the same kernel with sin negated.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of

MOST_HEADS = 16  # of a program


@triton.jit(do_not_specialize=["times"])  # they grow from step to step
def rope_kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr, x_batch, x_time, x_head, angle_batch, times, heads, head_dim, half, sign,
    INTERLEAVED: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    time = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (pair < half)
    angle = batch * angle_batch + time * half + pair
    cos = tl.load(cos_ptr + angle, mask=pair < half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=pair < half, other=0.0).to(tl.float32) * sign
    if INTERLEAVED:
        first, second = 2 * pair, 2 * pair + 1
    else:
        first, second = pair, pair + half
    x_row = x_ptr + batch * x_batch + time * x_time + head * x_head
    y_row = y_ptr + ((batch * times + time) * heads + head) * head_dim
    a = tl.load(x_row + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_row + second, mask=inside, other=0.0).to(tl.float32)
    kind = y_ptr.dtype.element_ty
    tl.store(y_row + first, (a * cos - b * sin).to(kind), mask=inside)
    tl.store(y_row + second, (b * cos + a * sin).to(kind), mask=inside)
    if REST > 0:
        column = 2 * half + tl.arange(0, REST)[None, :]
        beyond = (head < heads) & (column < head_dim)
        tl.store(y_row + column, tl.load(x_row + column, mask=beyond, other=0.0), mask=beyond)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, sign: float) -> Tensor:
    batches, times, heads, head_dim = x.shape
    half = cos.shape[-1]
    rest = head_dim - 2 * half
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        block = min(triton.next_power_of_2(heads), MOST_HEADS)
        rope_kernel[(times, batches, triton.cdiv(heads, block))](
            x, cos, sin, y, x.stride(0), x.stride(1), x.stride(2), 0 if cos.shape[0] == 1 else times * half,
            times, heads, head_dim, half, sign,
            INTERLEAVED=interleaved,
            HEADS=block,
            HALF=triton.next_power_of_2(half),
            REST=triton.next_power_of_2(rest) if rest else 0,
        )  # fmt: skip
    return y


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin, interleaved):
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotate(x, cos, sin, interleaved, 1.0)

    @staticmethod
    def backward(ctx, g):
        cos, sin = ctx.saved_tensors
        return _rotate(g.contiguous(), cos, sin, ctx.interleaved, -1.0), None, None, None


def rope(x: Tensor, cos: Tensor, sin: Tensor, layout: str = "half") -> Tensor:
    """x `[B, T, heads, D]` with contiguous heads; cos and sin `[B or 1, T, R/2]` with R <= D; returns x's shape, dtype.

    Raises ValueError for shapes, strides or layouts the kernel does not take.
    """
    batches, times, _, head_dim = x.shape
    if cos.shape != sin.shape or cos.shape[0] not in (1, batches) or cos.shape[1] != times:
        raise ValueError(f"rope: cos {list(cos.shape)} and sin {list(sin.shape)} do not fit x {list(x.shape)}")
    if 2 * cos.shape[-1] > head_dim:
        raise ValueError(f"rope: {2 * cos.shape[-1]} values to rotate, but a head has {head_dim}")
    if x.stride(-1) != 1:
        raise ValueError(f"rope: the last dimension of x has stride {x.stride(-1)}, expected 1")
    if layout not in ("half", "interleaved"):
        raise ValueError(f"rope: layout is {layout!r}, expected 'half' or 'interleaved'")
    with on_device_of(x):
        return _Rope.apply(x, cos.contiguous(), sin.contiguous(), layout == "interleaved")
