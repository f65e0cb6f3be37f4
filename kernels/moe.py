"""The experts of a mixture (Shazeer et al., arXiv:1701.06538), all of them in four launches, whatever their number.

    y_n = Σ_k w_nk E_{e_nk}(x_n),   E_e(x) = down_e (act(gate_e x) * up_e x)

A loop over experts is a launch for each product of each expert, and asks the device how many tokens each has. Here
nothing is asked: sizes on the host are bounds.

Many tokens: picks (token n, its k-th expert) are sorted by expert (`routing.py`) and cut in blocks of rows that belong
to one expert each; there are at most P / ROWS + E of them, and those behind the last return at once. A program
multiplies a block with a tile of the expert's matrix: rows of x are gathered where they lie, gate and up are two sums
of one pass with act(gate) * up in the epilogue (the 2F values in between are never written), and the second product
writes each row to its pick. An expert's matrix is read once per block of its rows.

Few picks, as in decoding: a product of a matrix and one row is limited by reading the matrix. A program takes some
output rows of one pick's expert, with no sorting and no padding to the 16 rows of a tensor core.

The last launch weighs a token's k rows and adds them up in their order, without atomics: the same batch gives the same
bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.gated_act import constants_of, factors
from minillm.kernels.launch import on_device_of
from minillm.kernels.routing import blocks_of, places
from minillm.kernels.tuning import HOPPER, LARGE, SMALL, Config, bucket, run

# Rows of a block of one expert's picks, outputs, inputs per step. The second product, with one sum where the first has
# two, takes twice as many outputs.
CONFIGS = (
    Config("64x64x64", (64, 64, 64), 4, 3, LARGE),
    Config("128x128x64", (128, 128, 64), 8, 4, HOPPER),
    Config("128x64x64", (128, 64, 64), 8, 3, LARGE),
    Config("16x64x64", (16, 64, 64), 4, 4, LARGE),
    Config("64x64x32", (64, 64, 32), 4, 1, SMALL),
    Config("16x64x64", (16, 64, 64), 4, 1, SMALL),
)
FP32 = (Config("64x32x32", (64, 32, 32), 4, 1),)
FEW = 64  # picks up to which each is computed by itself
# Of these: outputs, inputs per step.
FEW_CONFIGS = (Config("16x256", (16, 256), 4, 1), Config("8x512", (8, 512), 4, 1), Config("4x512", (4, 512), 2, 1))
COMBINED = 1024  # values of a token's sum per program


@triton.jit
def tile(w_ptr, rows, columns, height, width, w_o, w_i):
    """Rows and columns of a matrix `[height, width]`, zero outside."""
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    return tl.load(w_ptr + rows[:, None] * w_o + columns[None, :] * w_i, mask=inside, other=0.0)


@triton.jit
def gate_up_kernel(
    x_ptr, w_ptr, b_ptr, h_ptr, order_i32_ptr, expert_i32_ptr, first_i32_ptr, end_i32_ptr,
    x_t, w_e, w_o, w_i, top_k, experts, hidden, inner, alpha, limit,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    expert = tl.load(expert_i32_ptr + tl.program_id(0)).to(tl.int64)
    if expert >= experts:
        return
    sorted_rows = tl.load(first_i32_ptr + tl.program_id(0)).to(tl.int64) + tl.arange(0, ROWS)
    inside = sorted_rows < tl.load(end_i32_ptr + tl.program_id(0))
    token = tl.load(order_i32_ptr + sorted_rows, mask=inside, other=0).to(tl.int64) // top_k
    outputs = tl.program_id(1) * TILE + tl.arange(0, TILE)
    w_ptr += expert * w_e
    gate, up = tl.zeros((ROWS, TILE), tl.float32), tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, hidden, DEPTH):
        inputs = start + tl.arange(0, DEPTH)
        mask = inside[:, None] & (inputs < hidden)[None, :]
        x = tl.load(x_ptr + token[:, None] * x_t + inputs[None, :], mask=mask, other=0.0)
        w_gate = tile(w_ptr, outputs, inputs, inner, hidden, w_o, w_i)
        w_up = tile(w_ptr + inner * w_o, outputs, inputs, inner, hidden, w_o, w_i)
        gate += tl.dot(x, tl.trans(w_gate), input_precision="ieee")
        up += tl.dot(x, tl.trans(w_up), input_precision="ieee")
    if HAS_BIAS:
        b_at = b_ptr + expert * 2 * inner + outputs
        gate += tl.load(b_at, mask=outputs < inner, other=0.0).to(tl.float32)[None, :]
        up += tl.load(b_at + inner, mask=outputs < inner, other=0.0).to(tl.float32)[None, :]
    value, _, other, _ = factors(gate, up, alpha, limit, ACTIVATION)
    h_at = h_ptr + sorted_rows[:, None] * inner + outputs[None, :]
    tl.store(h_at, (value * other).to(h_ptr.dtype.element_ty), mask=inside[:, None] & (outputs < inner)[None, :])


@triton.jit
def down_kernel(
    h_ptr, w_ptr, b_ptr, y_ptr, order_i32_ptr, expert_i32_ptr, first_i32_ptr, end_i32_ptr,
    w_e, w_o, w_i, experts, hidden, inner,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    expert = tl.load(expert_i32_ptr + tl.program_id(0)).to(tl.int64)
    if expert >= experts:
        return
    sorted_rows = tl.load(first_i32_ptr + tl.program_id(0)).to(tl.int64) + tl.arange(0, ROWS)
    inside = sorted_rows < tl.load(end_i32_ptr + tl.program_id(0))
    pick = tl.load(order_i32_ptr + sorted_rows, mask=inside, other=0).to(tl.int64)
    outputs = tl.program_id(1) * TILE + tl.arange(0, TILE)
    y = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, inner, DEPTH):
        inputs = start + tl.arange(0, DEPTH)
        mask = inside[:, None] & (inputs < inner)[None, :]
        h = tl.load(h_ptr + sorted_rows[:, None] * inner + inputs[None, :], mask=mask, other=0.0)
        w = tile(w_ptr + expert * w_e, outputs, inputs, hidden, inner, w_o, w_i)
        y += tl.dot(h, tl.trans(w), input_precision="ieee")
    if HAS_BIAS:
        y += tl.load(b_ptr + expert * hidden + outputs, mask=outputs < hidden, other=0.0).to(tl.float32)[None, :]
    y_at = y_ptr + pick[:, None] * hidden + outputs[None, :]
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=inside[:, None] & (outputs < hidden)[None, :])


@triton.jit
def few_gate_up_kernel(
    x_ptr, w_ptr, b_ptr, h_ptr, picks_i64_ptr, x_t, w_e, w_o, w_i, top_k, hidden, inner, alpha, limit,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    pick = tl.program_id(0).to(tl.int64)
    expert = tl.load(picks_i64_ptr + pick)
    outputs = tl.program_id(1) * TILE + tl.arange(0, TILE)
    w_ptr += expert * w_e
    gates, ups = tl.zeros((TILE, DEPTH), tl.float32), tl.zeros((TILE, DEPTH), tl.float32)
    for start in range(0, hidden, DEPTH):
        inputs = start + tl.arange(0, DEPTH)
        x = tl.load(x_ptr + pick // top_k * x_t + inputs, mask=inputs < hidden, other=0.0).to(tl.float32)[None, :]
        gates += tile(w_ptr, outputs, inputs, inner, hidden, w_o, w_i).to(tl.float32) * x
        ups += tile(w_ptr + inner * w_o, outputs, inputs, inner, hidden, w_o, w_i).to(tl.float32) * x
    gate, up = tl.sum(gates, axis=1), tl.sum(ups, axis=1)  # once: threads meet for a sum
    if HAS_BIAS:
        b_at = b_ptr + expert * 2 * inner + outputs
        gate += tl.load(b_at, mask=outputs < inner, other=0.0).to(tl.float32)
        up += tl.load(b_at + inner, mask=outputs < inner, other=0.0).to(tl.float32)
    value, _, other, _ = factors(gate, up, alpha, limit, ACTIVATION)
    tl.store(h_ptr + pick * inner + outputs, (value * other).to(h_ptr.dtype.element_ty), mask=outputs < inner)


@triton.jit
def few_down_kernel(
    h_ptr, w_ptr, b_ptr, y_ptr, picks_i64_ptr, w_e, w_o, w_i, hidden, inner,
    HAS_BIAS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    pick = tl.program_id(0).to(tl.int64)
    expert = tl.load(picks_i64_ptr + pick)
    outputs = tl.program_id(1) * TILE + tl.arange(0, TILE)
    products = tl.zeros((TILE, DEPTH), tl.float32)
    for start in range(0, inner, DEPTH):
        inputs = start + tl.arange(0, DEPTH)
        h = tl.load(h_ptr + pick * inner + inputs, mask=inputs < inner, other=0.0).to(tl.float32)[None, :]
        products += tile(w_ptr + expert * w_e, outputs, inputs, hidden, inner, w_o, w_i).to(tl.float32) * h
    y = tl.sum(products, axis=1)
    if HAS_BIAS:
        y += tl.load(b_ptr + expert * hidden + outputs, mask=outputs < hidden, other=0.0).to(tl.float32)
    tl.store(y_ptr + pick * hidden + outputs, y.to(y_ptr.dtype.element_ty), mask=outputs < hidden)


@triton.jit
def combine_kernel(y_ptr, weights_f32_ptr, out_ptr, top_k, hidden, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for pick in range(token * top_k, (token + 1) * top_k):
        y = tl.load(y_ptr + pick * hidden + columns, mask=columns < hidden, other=0.0).to(tl.float32)
        total += y * tl.load(weights_f32_ptr + pick)
    tl.store(out_ptr + token * hidden + columns, total.to(out_ptr.dtype.element_ty), mask=columns < hidden)


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation="silu",
    biases: tuple[Tensor, Tensor] | None = None,
    noted: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """x `[N, H]`, chosen int64 and weights fp32 `[N, k]`, gate_up `[E, 2F, H]` and down `[E, H, F]` with any strides,
    biases `[E, 2F]` and `[E, H]` -> `[N, H]`. `activation` as in `gated_act`; `noted` are the places of these very
    picks, as `routing.route` returns them. Experts that no token chose are not read. Inference only. Raises ValueError
    for what does not fit."""
    _check(x, chosen, weights, gate_up, down, biases)
    tokens, top_k = chosen.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    both = tuple(each.contiguous() for each in biases) if biases else (None, None)
    h = torch.empty(tokens * top_k, down.shape[2], dtype=x.dtype, device=x.device)
    y = torch.empty(tokens * top_k, x.shape[1], dtype=x.dtype, device=x.device)
    chosen, activation = chosen.contiguous(), constants_of(activation)
    with on_device_of(x):
        if len(y) <= FEW:
            _few(x, chosen, gate_up, down, both, activation, h, y)
        else:
            _many(x, chosen, gate_up, down, both, activation, h, y, noted or places(chosen, len(down)))
        grid = (tokens, triton.cdiv(x.shape[1], COMBINED))
        combine_kernel[grid](y, weights.contiguous(), out, top_k, x.shape[1], BLOCK=COMBINED)
    return out


def _few(x, chosen, gate_up, down, biases, activation, h, y):
    (picks, hidden), inner, top_k = y.shape, h.shape[1], chosen.shape[1]

    def launch(config: Config) -> None:
        tile, depth = config.blocks
        shape = {"HAS_BIAS": biases[0] is not None, "TILE": tile, "DEPTH": depth, **config.options}
        few_gate_up_kernel[picks, triton.cdiv(inner, tile)](
            x, gate_up, biases[0], h, chosen, x.stride(0), *gate_up.stride(), top_k, hidden, inner, *activation[1:],
            ACTIVATION=activation[0], **shape)  # fmt: skip
        few_down_kernel[picks, triton.cdiv(hidden, tile)](
            h, down, biases[1], y, chosen, *down.stride(), hidden, inner, **shape)  # fmt: skip

    run("experts_few", (x.dtype, hidden, inner, bucket(picks)), FEW_CONFIGS, x.device, launch)


def _many(x, chosen, gate_up, down, biases, activation, h, y, noted):
    (picks, hidden), inner, (_, top_k), count = y.shape, h.shape[1], chosen.shape, len(down)

    def launch(config: Config) -> None:
        rows, tile, depth = config.blocks
        blocks = blocks_of(chosen, noted[0], noted[1], rows)
        shape = {"HAS_BIAS": biases[0] is not None, "ROWS": rows, "TILE": tile, "DEPTH": depth, **config.options}
        gate_up_kernel[len(blocks[1]), triton.cdiv(inner, tile)](
            x, gate_up, biases[0], h, *blocks, x.stride(0), *gate_up.stride(), top_k, count, hidden, inner,
            *activation[1:], ACTIVATION=activation[0], **shape)  # fmt: skip
        down_kernel[len(blocks[1]), triton.cdiv(hidden, 2 * tile)](
            h, down, biases[1], y, *blocks, *down.stride(), count, hidden, inner, **{**shape, "TILE": 2 * tile}
        )

    table = FP32 if x.dtype == torch.float32 else CONFIGS
    run("experts", (x.dtype, hidden, inner, count, bucket(picks // count)), table, x.device, launch)


def _check(x, chosen, weights, gate_up, down, biases):
    if x.dim() != 2 or chosen.dim() != 2 or len(x) != len(chosen) or chosen.shape != weights.shape:
        raise ValueError(f"experts: x {list(x.shape)}, chosen {list(chosen.shape)}, weights {list(weights.shape)} do "
                         "not fit; expected [N, H], [N, k] and [N, k]")  # fmt: skip
    count, hidden, inner = down.shape
    if gate_up.shape != (count, 2 * inner, hidden) or hidden != x.shape[1]:
        raise ValueError(f"experts: x {list(x.shape)}, gate_up {list(gate_up.shape)} and down {list(down.shape)} do "
                         "not fit; expected [N, H], [E, 2F, H] and [E, H, F]")  # fmt: skip
    if biases is not None and (biases[0].shape != gate_up.shape[:2] or biases[1].shape != down.shape[:2]):
        raise ValueError(f"experts: biases {[list(each.shape) for each in biases]}, expected [E, 2F] and [E, H]")
    if chosen.dtype != torch.int64 or weights.dtype != torch.float32:
        raise ValueError(f"experts: chosen is {chosen.dtype}, weights {weights.dtype}; expected int64 and float32")
    if x.stride(1) != 1 and hidden > 1:
        raise ValueError(f"experts: the last dimension of x has stride {x.stride(1)}, expected 1")
    for name, each in (("gate_up", gate_up), ("down", down)):
        if each.dtype != x.dtype or each.device != x.device:
            raise ValueError(f"experts: {name} is {each.dtype} on {each.device}, x {x.dtype} on {x.device}")
