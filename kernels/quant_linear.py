"""Products with quantised weights, y = x Wᵀ + b, which are made numbers in registers and never in memory.

    int8   W[o, i] = q[o, i] s[o]                             one byte
    int4   W[o, i] = (q[o, i] - z[o, i / g]) s[o, i / g]      half a byte; z = 8 where there are no zero points
    fp8    W[o, i] = e4m3(q[o, i]) s[o / 128, i / 128]        one byte (DeepSeek-V3, arXiv:2412.19437, section 3.3)

Int4 packs value 2j of a row in the low half of its byte j and 2j + 1 in the high half; groups of g inputs share a
factor, the last may be shorter.

Decoding reads every weight once: at half or a quarter of the bytes it takes half or a quarter of the time. A program
owns some rows of x and some outputs and goes over the inputs; a tile of weights is read as bytes, made fp32, multiplied
by its factors, rounded to the type of x and given to a tensor core. Up to 16 rows, what a tensor core takes at least,
are one block, so that each byte is read once; many rows share the tiles in larger blocks.

e4m3 is decoded by shifting its bits into those of an fp32, whose exponent is then off by 127 - 7: not every GPU has it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of

# Rows, outputs, inputs per step, warps, stages: for up to 16 rows, for more, and for fp32 without tensor cores.
FEW, MANY, FP32 = (16, 32, 64, 4, 4), (64, 64, 32, 4, 3), (16, 32, 32, 4, 1)
INT8, INT4, FP8 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
FP8_BLOCK = tl.constexpr(128)


@triton.jit
def weights(
    w_u8_ptr, s_f32_ptr, z_f32_ptr, rows, columns, outputs, inputs, w_o, s_o, group,
    FORMAT: tl.constexpr, HAS_ZERO: tl.constexpr,
):  # fmt: skip
    """Rows and columns of W, fp32; zero outside."""
    inside = (rows < outputs)[:, None] & (columns < inputs)[None, :]
    if FORMAT == INT4:
        byte = tl.load(w_u8_ptr + rows[:, None] * w_o + (columns // 2)[None, :], mask=inside, other=0).to(tl.int32)
        at = rows[:, None] * s_o + (columns // group)[None, :]
        zero = 8.0
        if HAS_ZERO:
            zero = tl.load(z_f32_ptr + at, mask=inside, other=0.0)
        value = ((byte >> (columns % 2 * 4)[None, :]) & 15).to(tl.float32) - zero
        return value * tl.load(s_f32_ptr + at, mask=inside, other=0.0)
    byte = tl.load(w_u8_ptr + rows[:, None] * w_o + columns[None, :], mask=inside, other=0).to(tl.int32)
    if FORMAT == INT8:
        value = ((byte ^ 128) - 128).to(tl.float32)
        return value * tl.load(s_f32_ptr + rows, mask=rows < outputs, other=0.0)[:, None]
    bits = ((byte & 128) << 24) | ((byte & 127) << 20)
    value = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    value = tl.where((byte & 127) == 127, float("nan"), value)
    at = (rows // FP8_BLOCK)[:, None] * s_o + (columns // FP8_BLOCK)[None, :]
    return value * tl.load(s_f32_ptr + at, mask=inside, other=0.0)


@triton.jit
def product_kernel(
    x_ptr, w_u8_ptr, s_f32_ptr, z_f32_ptr, b_ptr, y_ptr, x_t, w_o, s_o, count, outputs, inputs, group,
    FORMAT: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    out = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    y = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, inputs, DEPTH):
        columns = start + tl.arange(0, DEPTH)
        mask = (rows < count)[:, None] & (columns < inputs)[None, :]
        x = tl.load(x_ptr + rows[:, None] * x_t + columns[None, :], mask=mask, other=0.0)
        w = weights(w_u8_ptr, s_f32_ptr, z_f32_ptr, out, columns, outputs, inputs, w_o, s_o, group, FORMAT, HAS_ZERO)
        y += tl.dot(x, tl.trans(w.to(x.dtype)), input_precision="ieee")
    if HAS_BIAS:
        y += tl.load(b_ptr + out, mask=out < outputs, other=0.0).to(tl.float32)[None, :]
    mask = (rows < count)[:, None] & (out < outputs)[None, :]
    tl.store(y_ptr + rows[:, None] * outputs + out[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[..., I]`, weight int8 `[O, I]`, scale fp32 `[O]`, bias `[O]` of x's type -> `[..., O]`."""
    _expect("weight", weight, torch.int8, (len(weight), x.shape[-1]))
    _expect("scale", scale, torch.float32, weight.shape[:1])
    return _product(x, weight.view(torch.uint8), scale, None, bias, x.shape[-1], INT8.value)


def int4_linear(
    x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int, bias: Tensor | None = None
) -> Tensor:
    """x `[..., I]`, packed uint8 `[O, I / 2]`, scale and zero fp32 `[O, I / group]` (rounded up, all), bias `[O]` of
    x's type -> `[..., O]`; without zero points the values are q - 8."""
    inputs = x.shape[-1]
    if group < 1:
        raise ValueError(f"int4_linear: group is {group}, it must be at least 1")
    _expect("packed", packed, torch.uint8, (len(packed), triton.cdiv(inputs, 2)))
    for name, each in (("scale", scale), ("zero", zero)):
        if each is not None:
            _expect(name, each, torch.float32, (len(packed), triton.cdiv(inputs, group)))
    return _product(x, packed, scale, zero, bias, group, INT4.value)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[..., I]`, weight float8_e4m3fn `[O, I]`, scale fp32 `[O / 128, I / 128]` (rounded up), bias `[O]` of x's type
    -> `[..., O]`."""
    _expect("weight", weight, torch.float8_e4m3fn, (len(weight), x.shape[-1]))
    _expect("scale", scale, torch.float32, tuple(triton.cdiv(size, FP8_BLOCK.value) for size in weight.shape))
    return _product(x, weight.view(torch.uint8), scale, None, bias, FP8_BLOCK.value, FP8.value)


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(f"quant_linear: {name} is {tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()}, "
                         f"expected contiguous {dtype} {list(shape)}")  # fmt: skip


def _product(x, weight, scale, zero, bias, group, kind):
    outputs, rows = len(weight), x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 and rows.shape[1] > 1:
        raise ValueError(f"quant_linear: the last dimension of x has stride {rows.stride(1)}, expected 1")
    if any(each is not None and each.device != x.device for each in (weight, scale, zero, bias)):
        raise ValueError(f"quant_linear: x is on {x.device}, some of the weights are not")
    if bias is not None:
        _expect("bias", bias, x.dtype, (outputs,))
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    block, tile, depth, warps, stages = FEW if len(rows) <= 16 else MANY
    if x.dtype == torch.float32:
        block, tile, depth, warps, stages = FP32
    with on_device_of(x):
        product_kernel[triton.cdiv(len(rows), block), triton.cdiv(outputs, tile)](
            rows, weight, scale, zero, bias, y, rows.stride(0), weight.stride(0),
            scale.stride(0), len(rows), outputs, x.shape[-1], group,
            FORMAT=kind, HAS_ZERO=zero is not None, HAS_BIAS=bias is not None,
            ROWS=block, TILE=tile, DEPTH=depth, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return y
