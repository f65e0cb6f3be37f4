"""Products with quantised weights, y = x Wᵀ + b, which are made numbers in registers and never in memory.

    int8   W[o, i] = q[o, i] s[o]                             one byte
    int4   W[o, i] = (q[o, i] - z[o, i / g]) s[o, i / g]      half a byte; z = 8 where there are no zero points
    fp8    W[o, i] = e4m3(q[o, i]) s[o / 128, i / 128]        one byte (DeepSeek-V3, arXiv:2412.19437, section 3.3)

Int4 packs value 2j of a row in the low half of its byte j and 2j + 1 in the high half; groups of g inputs share a
factor, the last may be shorter.

Decoding reads every weight once: at half or a quarter of the bytes it takes half or a quarter of the time. A program
owns some rows of x and some outputs and goes over the inputs. A tile of weights is read as bytes, and the numbers they
stand for go to a tensor core in the type of x: whole numbers of 8 bits and e4m3 are exact in it. The factors, the same
for a whole step of inputs, multiply the sums behind; only where groups are no multiple of a step each weight is
multiplied by its own and rounded. Up to 16 rows, what a tensor core takes at least, are one block, so that each byte is
read once; many rows share the tiles in larger blocks.

e4m3 is decoded by shifting its bits into those of an fp32, whose exponent is then off by 127 - 7: not every GPU has it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of
from minillm.kernels.tuning import LARGE, SMALL, Config, bucket, run

# Rows, outputs, inputs per step: for up to 16 rows, for more, and for fp32 without tensor cores.
FEW = (
    Config("16x32x128", (16, 32, 128), 4, 4, LARGE),
    Config("16x16x256", (16, 16, 256), 4, 4, LARGE),
    Config("16x64x128", (16, 64, 128), 8, 4, LARGE),
    Config("16x32x64", (16, 32, 64), 4, 1, SMALL),
)
MANY = (
    Config("64x64x64", (64, 64, 64), 4, 3, LARGE),
    Config("128x64x64", (128, 64, 64), 8, 3, LARGE),
    Config("64x64x32", (64, 64, 32), 4, 1, SMALL),
)
FP32 = (Config("16x32x32", (16, 32, 32), 4, 1),)
INT8, INT4, FP8 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
FP8_BLOCK = 128
SMALLEST = 32  # inputs that a step has at least: 16 of either half of a byte


@triton.jit
def numbers(byte, FORMAT: tl.constexpr):
    """What bytes stand for, fp32: a byte of int4, `[O, I / 2]`, gives the two numbers that lie in it, `[O, I]`. A whole
    number below 2^23 becomes a float with its bits below those of 2^23, which is then subtracted."""
    bits = byte.to(tl.int32)
    if FORMAT == INT8:
        value = ((bits ^ 128) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0  # 2^23 + 128
    elif FORMAT == INT4:
        both = tl.join(bits & 15, bits >> 4).reshape(byte.shape[0], 2 * byte.shape[1])
        value = (both | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
    else:
        moved = ((bits & 128) << 24) | ((bits & 127) << 20)
        value = moved.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
        value = tl.where((bits & 127) == 127, float("nan"), value)
    return value


@triton.jit
def product_kernel(
    x_ptr, w_u8_ptr, s_f32_ptr, z_f32_ptr, b_ptr, y_ptr, x_t, w_o, s_o, count, outputs, inputs, group, rows_each,
    FORMAT: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, EACH: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Factor s of an output and an input is at [output // rows_each, input // group]. EACH: one step has several."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    out = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    in_x, in_w = (rows < count)[:, None], (out < outputs)[:, None]
    x_at, w_at, s_at = x_ptr + rows[:, None] * x_t, w_u8_ptr + out[:, None] * w_o, out // rows_each * s_o
    y = tl.zeros((ROWS, TILE), tl.float32)
    SHARE: tl.constexpr = 2 if FORMAT == INT4 else 1  # inputs of a byte
    for start in range(0, inputs, DEPTH):
        column = start + tl.arange(0, DEPTH)
        x = tl.load(x_at + column[None, :], mask=in_x & (column < inputs)[None, :], other=0.0)
        place = start // SHARE + tl.arange(0, DEPTH // SHARE)
        byte = tl.load(w_at + place[None, :], mask=in_w & (place < w_o)[None, :], other=0)
        w = numbers(byte, FORMAT)
        if EACH:
            at, inside = s_at[:, None] + (column // group)[None, :], in_w & (column < inputs)[None, :]
            w -= tl.load(z_f32_ptr + at, mask=inside, other=0.0) if HAS_ZERO else 8.0
            w *= tl.load(s_f32_ptr + at, mask=inside, other=0.0)
            y += tl.dot(x, tl.trans(w.to(x.dtype)), input_precision="ieee")
        else:
            at = s_at + start // group
            if HAS_ZERO:
                w -= tl.load(z_f32_ptr + at, mask=out < outputs, other=0.0)[:, None]
            elif FORMAT == INT4:
                w -= 8.0
            part = tl.dot(x, tl.trans(w.to(x.dtype)), input_precision="ieee")
            y += part * tl.load(s_f32_ptr + at, mask=out < outputs, other=0.0)[None, :]
    if HAS_BIAS:
        y += tl.load(b_ptr + out, mask=out < outputs, other=0.0).to(tl.float32)[None, :]
    mask = in_x & (out < outputs)[None, :]
    tl.store(y_ptr + rows[:, None] * outputs + out[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[..., I]`, weight int8 `[O, I]`, scale fp32 `[O]`, bias `[O]` of x's type -> `[..., O]`."""
    _expect("weight", weight, torch.int8, (len(weight), x.shape[-1]))
    _expect("scale", scale, torch.float32, weight.shape[:1])
    return _product(x, weight.view(torch.uint8), scale, None, bias, 1 << 30, 1, INT8.value)


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
    return _product(x, packed, scale, zero, bias, group, 1, INT4.value)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[..., I]`, weight float8_e4m3fn `[O, I]`, scale fp32 `[O / 128, I / 128]` (rounded up) or `[O, I / 128]`, bias
    `[O]` of x's type -> `[..., O]`."""
    _expect("weight", weight, torch.float8_e4m3fn, (len(weight), x.shape[-1]))
    rows_each = 1 if len(scale) == len(weight) else FP8_BLOCK
    shape = (triton.cdiv(len(weight), rows_each), triton.cdiv(x.shape[-1], FP8_BLOCK))
    _expect("scale", scale, torch.float32, shape)
    return _product(x, weight.view(torch.uint8), scale, None, bias, FP8_BLOCK, rows_each, FP8.value)


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(f"quant_linear: {name} is {tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()}, "
                         f"expected contiguous {dtype} {list(shape)}")  # fmt: skip


def _product(x, weight, scale, zero, bias, group, rows_each, kind):
    outputs, inputs, rows = len(weight), x.shape[-1], x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 and inputs > 1:
        raise ValueError(f"quant_linear: the last dimension of x has stride {rows.stride(1)}, expected 1")
    if any(each is not None and each.device != x.device for each in (weight, scale, zero, bias)):
        raise ValueError(f"quant_linear: x is on {x.device}, some of the weights are not")
    if bias is not None:
        _expect("bias", bias, x.dtype, (outputs,))
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y

    def launch(config: Config) -> None:
        block, tile, depth = config.blocks
        depth = max(min(depth, group & -group), SMALLEST)  # that a group is a multiple of, where it can be
        product_kernel[triton.cdiv(len(rows), block), triton.cdiv(outputs, tile)](
            rows, weight, scale, zero, bias, y, rows.stride(0), weight.stride(0), scale.stride(0), len(rows), outputs,
            inputs, group, rows_each, FORMAT=kind, HAS_ZERO=zero is not None, HAS_BIAS=bias is not None,
            EACH=group % depth != 0, ROWS=block, TILE=tile, DEPTH=depth, **config.options,
        )  # fmt: skip

    table = FP32 if x.dtype == torch.float32 else FEW if len(rows) <= 16 else MANY
    with on_device_of(x):
        run("quant_linear", (x.dtype, kind, group, outputs, inputs, bucket(len(rows))), table, x.device, launch)
    return y
