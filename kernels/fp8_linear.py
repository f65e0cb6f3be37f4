"""Products with FP8 weights, y = x Wᵀ + b, which are made numbers in registers and never in memory.

    W[o, i] = e4m3(q[o, i]) s[o / 128, i / 128]        one byte (DeepSeek-V3, arXiv:2412.19437, section 3.3)

Decoding reads every weight once: at half of the bytes it takes half of the time. A program owns some rows of x and some
outputs and goes over the inputs. A tile of weights is read as bytes, and the numbers they stand for, exact in the type
of x, go to a tensor core. The factors, the same for a whole step of inputs, multiply the sums behind. Up to 16 rows,
what a tensor core takes at least, are one block, so that each byte is read once; many rows share the tiles in larger
blocks.

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
BLOCK = 128  # inputs, and perhaps outputs, that share a factor


@triton.jit
def numbers(byte):
    """What bytes stand for, fp32."""
    bits = byte.to(tl.int32)
    moved = ((bits & 128) << 24) | ((bits & 127) << 20)
    value = moved.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    return tl.where((bits & 127) == 127, float("nan"), value)


@triton.jit
def product_kernel(
    x_ptr, w_u8_ptr, s_f32_ptr, b_ptr, y_ptr, x_t, s_o, count, outputs, inputs, rows_each,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Factor s of an output and an input is at [output // rows_each, input // WIDTH]."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    out = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    in_x, in_w = (rows < count)[:, None], (out < outputs)[:, None]
    x_at, w_at, s_at = x_ptr + rows[:, None] * x_t, w_u8_ptr + out[:, None] * inputs, out // rows_each * s_o
    y = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, inputs, DEPTH):
        column = start + tl.arange(0, DEPTH)
        x = tl.load(x_at + column[None, :], mask=in_x & (column < inputs)[None, :], other=0.0)
        byte = tl.load(w_at + column[None, :], mask=in_w & (column < inputs)[None, :], other=0)
        part = tl.dot(x, tl.trans(numbers(byte).to(x.dtype)), input_precision="ieee")
        y += part * tl.load(s_f32_ptr + s_at + start // WIDTH, mask=out < outputs, other=0.0)[None, :]
    if HAS_BIAS:
        y += tl.load(b_ptr + out, mask=out < outputs, other=0.0).to(tl.float32)[None, :]
    mask = in_x & (out < outputs)[None, :]
    tl.store(y_ptr + rows[:, None] * outputs + out[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[..., I]`, weight float8_e4m3fn `[O, I]`, scale fp32 `[O / 128, I / 128]` (rounded up) or `[O, I / 128]`, bias
    `[O]` of x's type -> `[..., O]`."""
    _expect("weight", weight, torch.float8_e4m3fn, (len(weight), x.shape[-1]))
    rows_each = 1 if len(scale) == len(weight) else BLOCK
    shape = (triton.cdiv(len(weight), rows_each), triton.cdiv(x.shape[-1], BLOCK))
    _expect("scale", scale, torch.float32, shape)
    outputs, inputs, rows = len(weight), x.shape[-1], x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 and inputs > 1:
        raise ValueError(f"fp8_linear: the last dimension of x has stride {rows.stride(1)}, expected 1")
    if any(each is not None and each.device != x.device for each in (weight, scale, bias)):
        raise ValueError(f"fp8_linear: x is on {x.device}, some of the weights are not")
    if bias is not None:
        _expect("bias", bias, x.dtype, (outputs,))
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y

    def launch(config: Config) -> None:
        block, tile, depth = config.blocks
        depth = min(depth, BLOCK)  # of one factor
        product_kernel[triton.cdiv(len(rows), block), triton.cdiv(outputs, tile)](
            rows, weight.view(torch.uint8), scale, bias, y, rows.stride(0), scale.stride(0), len(rows), outputs, inputs,
            rows_each, HAS_BIAS=bias is not None, WIDTH=BLOCK, ROWS=block, TILE=tile, DEPTH=depth, **config.options,
        )  # fmt: skip

    table = FP32 if x.dtype == torch.float32 else FEW if len(rows) <= 16 else MANY
    with on_device_of(x):
        run("fp8_linear", (x.dtype, outputs, inputs, bucket(len(rows))), table, x.device, launch)
    return y


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(f"fp8_linear: {name} is {tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()}, "
                         f"expected contiguous {dtype} {list(shape)}")  # fmt: skip
