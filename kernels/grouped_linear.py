"""Products with matrices of few bits in groups, y = x Wᵀ + b: what the formats of `weights/grouped.py` are in memory.

    W[o, i] = s[o, g] (q[o, i] - z[o, g]) - m[o, g]        g = i / group; z may be the same for all, m nothing
    W[o, i] = s[o, g] T[q[o, i]]                           with a table T of 16 values instead
    s[o, g] = code[o, g] f[o, i / span]                    where scales are codes of 8 bits; m likewise

Rows lie by themselves (tiles of one row): byte 4c + k of a row has inputs 8c + k in its low and 8c + 4 + k in its high
half (of 8 bits: input 4c + k); a plane of its own has the bits above the fourth.
Decoding reads every weight once, in 4 to 8 bits instead of 16, and each is a number in registers only.

One row of x: a program goes over some rows of W. Four bytes are read as a word, which is 8 inputs (4 of 8 bits) of one
group: their products are added up first and meet the scale once, where W is not rounded.

More rows: tiles of W become numbers of the type of x for a tensor core. The halves of bytes are two products, so that
no number changes places: the columns of x are loaded in the order of either half.

A matrix with few outputs would leave a GPU idle: its inputs are cut in parts, whose sums a second launch adds up in
their order.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of
from minillm.kernels.tuning import LARGE, SMALL, Config, bucket, run

# Rows of x, outputs, inputs per step. One row by itself: words per step, no more than a program has threads, or what
# each thread needs of x would go through shared memory. A single row may also be one of 16 that a tensor core takes.
ONE = (
    Config("1x16x64", (1, 16, 64), 4, 1),
    Config("1x8x64", (1, 8, 64), 4, 1),
    Config("1x32x64", (1, 32, 64), 4, 1),
    Config("16x32x128", (16, 32, 128), 4, 4, LARGE),
)
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
FP32_ONE = (Config("1x16x64", (1, 16, 64), 4, 1),)
FP32 = (Config("16x32x32", (16, 32, 32), 4, 1),)
PROGRAMS = 528  # enough to fill a GPU of 132 multiprocessors four times
LEAST = 1024  # inputs that are worth a program
GROUP = 8  # inputs of a word: groups are a multiple of it
HALF, BFLOAT = tl.constexpr(1), tl.constexpr(2)
ROUNDINGS = {None: 0, torch.float32: 0, torch.float16: HALF.value, torch.bfloat16: BFLOAT.value}
CHUNK = tl.constexpr(32)  # inputs that rows are filled up to a multiple of
JOINED = 1024  # outputs per program of the second launch


@triton.jit
def numbers(q, zero, table_f32_ptr, ZERO: tl.constexpr):
    """What q stands for before its scale, fp32. A whole number below 2^23 becomes a float with its bits below those of
    2^23, which is then subtracted, along with the zero point."""
    if table_f32_ptr is not None:
        return tl.load(table_f32_ptr + q)
    value = (q | 0x4B000000).to(tl.float32, bitcast=True)
    return value - (8388608.0 + (ZERO if zero is None else zero))


@triton.jit
def rounded(w, ROUNDED: tl.constexpr):
    """W as the type has it that the matrix was made in; bf16 by its bits, which Triton's interpreter cuts off."""
    if ROUNDED == HALF:
        value = w.to(tl.float16).to(tl.float32)
    else:
        bits = w.to(tl.int32, bitcast=True)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return value


@triton.jit
def of_groups(values_ptr, column, out, inside, groups, GROUP: tl.constexpr):
    """What groups have one of, fp32, for some columns `[1, N]` of some rows `[O, 1]`: `[O, N]`. GROUP 0 is a row."""
    at = column // GROUP if GROUP else column * 0
    return tl.load(values_ptr + out * groups + at, mask=inside, other=0).to(tl.float32)


@triton.jit
def in_units(code_ptr, factor_ptr, column, out, inside, groups, spans, GROUP: tl.constexpr, SPAN: tl.constexpr):
    """Scales or minima."""
    value = of_groups(code_ptr, column, out, inside, groups, GROUP)
    if factor_ptr is not None:
        value *= of_groups(factor_ptr, column, out, inside, spans, SPAN)
    return value


@triton.jit
def row_kernel(
    x_ptr, w_i32_ptr, high_i32_ptr, s_ptr, factor_ptr, zero_u8_ptr, least_ptr, floor_ptr, table_f32_ptr, b_ptr, y_ptr,
    x_t, count, outputs, inputs, chunks, groups, spans, steps,
    BITS: tl.constexpr, ZERO: tl.constexpr, ROUNDED: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr,
    TILE: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Row by row of x: some outputs, in so many `steps` of inputs."""
    EACH: tl.constexpr = 4 if BITS == 8 else 8  # inputs of a word
    HIGH: tl.constexpr = 0 if BITS == 8 else BITS - 4  # bits of a number in the other plane
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    out = (tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE))[:, None]
    y = tl.zeros((TILE, WORDS), tl.float32)
    for step in range(part * steps, tl.minimum((part + 1) * steps, tl.cdiv(inputs, EACH * WORDS))):
        place = (step * WORDS + tl.arange(0, WORDS))[None, :]
        column = place * EACH
        inside = (out < outputs) & (place < chunks * (CHUNK // EACH))
        word = tl.load(w_i32_ptr + out * chunks * (CHUNK // EACH) + place, mask=inside, other=0)
        if HIGH:
            rest = tl.load(high_i32_ptr + out * chunks * HIGH + place // (4 // HIGH), mask=inside, other=0)
            rest = rest >> (place % (4 // HIGH) * 2 * HIGH)
        zero, inside = None, inside & (column < inputs)
        if zero_u8_ptr is not None:
            zero = of_groups(zero_u8_ptr, column, out, inside, groups, GROUP)
        scale, least = in_units(s_ptr, factor_ptr, column, out, inside, groups, spans, GROUP, SPAN), 0.0
        if least_ptr is not None:
            least = in_units(least_ptr, floor_ptr, column, out, inside, groups, spans, GROUP, SPAN)
        added, all_x = tl.zeros_like(y), tl.zeros((1, WORDS), tl.float32)
        for n in tl.static_range(EACH):
            if BITS == 8:
                q = word >> 8 * n & 255
            else:
                q = word >> (8 * (n % 4) + 4 * (n // 4)) & 15
                if HIGH:
                    q |= (rest >> (8 * (n % 4) + HIGH * (n // 4)) & (1 << HIGH) - 1) << 4
            x = tl.load(x_ptr + row * x_t + column + n, mask=column + n < inputs, other=0.0).to(tl.float32)
            w = numbers(q, zero, table_f32_ptr, ZERO)
            added += (rounded(w * scale - least, ROUNDED) if ROUNDED else w) * x
            all_x += x
        y += added if ROUNDED else added * scale - all_x * least
    total, out = tl.sum(y, axis=1), tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    if b_ptr is not None:
        total += tl.load(b_ptr + out, mask=out < outputs, other=0.0).to(tl.float32)
    y_at = y_ptr + (part * count + row) * outputs + out
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=out < outputs)


@triton.jit
def spread(values, TILE: tl.constexpr, RUNS: tl.constexpr, WIDE: tl.constexpr):
    """`[TILE, RUNS]` -> `[TILE, RUNS * WIDE]`, each for the columns of its run."""
    return tl.broadcast_to(values[:, :, None], (TILE, RUNS, WIDE)).reshape(TILE, RUNS * WIDE)


@triton.jit
def rows_kernel(
    x_ptr, w_u8_ptr, high_u8_ptr, s_ptr, factor_ptr, zero_u8_ptr, least_ptr, floor_ptr, table_f32_ptr, b_ptr, y_ptr,
    x_t, count, outputs, inputs, chunks, groups, spans, steps,
    BITS: tl.constexpr, ZERO: tl.constexpr, ROUNDED: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr,
    RUN: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A block of rows of x: some outputs, in so many `steps` of inputs, of which each RUN have one scale."""
    HALVES: tl.constexpr = 1 if BITS == 8 else 2
    HIGH: tl.constexpr = 0 if BITS == 8 else BITS - 4
    RUNS: tl.constexpr = DEPTH // RUN
    WIDE: tl.constexpr = RUN // HALVES
    rows, part = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.program_id(2)
    out = (tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE))[:, None]
    in_x, in_w = (rows < count)[:, None], out < outputs
    y = tl.zeros((ROWS, TILE), tl.float32)
    for step in range(part * steps, tl.minimum((part + 1) * steps, tl.cdiv(inputs, DEPTH))):
        place = (step * (DEPTH // HALVES) + tl.arange(0, DEPTH // HALVES))[None, :]
        inside = in_w & (place < chunks * (CHUNK // HALVES))
        byte = tl.load(w_u8_ptr + out * chunks * (CHUNK // HALVES) + place, mask=inside, other=0).to(tl.int32)
        if HIGH:
            at = high_u8_ptr + out * chunks * (4 * HIGH) + place // (16 // HIGH) * 4 + place % 4
            rest = tl.load(at, mask=inside, other=0).to(tl.int32)
            rest = rest >> (place // 4 % (4 // HIGH) * 2 * HIGH)
        first = (step * DEPTH + RUN * tl.arange(0, RUNS))[None, :]
        inside = in_w & (first < inputs)
        scale = in_units(s_ptr, factor_ptr, first, out, inside, groups, spans, GROUP, SPAN)
        scale, zero, least = spread(scale, TILE, RUNS, WIDE), None, 0.0
        if zero_u8_ptr is not None:
            zero = spread(of_groups(zero_u8_ptr, first, out, inside, groups, GROUP), TILE, RUNS, WIDE)
        if least_ptr is not None:
            least = in_units(least_ptr, floor_ptr, first, out, inside, groups, spans, GROUP, SPAN)
            least = spread(least, TILE, RUNS, WIDE)
        for half in tl.static_range(HALVES):
            q = byte if BITS == 8 else byte >> 4 * half & 15
            if HIGH:
                q |= (rest >> HIGH * half & (1 << HIGH) - 1) << 4
            w = numbers(q, zero, table_f32_ptr, ZERO) * scale - least
            if ROUNDED:
                w = rounded(w, ROUNDED)
            column = place if BITS == 8 else place // 4 * 8 + 4 * half + place % 4
            x = tl.load(x_ptr + rows[:, None] * x_t + column, mask=in_x & (column < inputs), other=0.0)
            y += tl.dot(x, tl.trans(w.to(x.dtype)), input_precision="ieee")
    out = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    if b_ptr is not None:
        y += tl.load(b_ptr + out, mask=out < outputs, other=0.0).to(tl.float32)[None, :]
    y_at = y_ptr + (part * count + rows[:, None]) * outputs + out[None, :]
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=in_x & (out < outputs)[None, :])


@triton.jit
def join_kernel(parts_f32_ptr, b_ptr, y_ptr, count, outputs, times, BLOCK: tl.constexpr):
    """Add up the parts `[times, rows, O]` of a row, and the bias."""
    row, out = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.zeros((BLOCK,), tl.float32)
    for part in range(times):
        y += tl.load(parts_f32_ptr + (part * count + row) * outputs + out, mask=out < outputs, other=0.0)
    if b_ptr is not None:
        y += tl.load(b_ptr + out, mask=out < outputs, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * outputs + out, y.to(y_ptr.dtype.element_ty), mask=out < outputs)


def grouped_linear(
    x: Tensor, parts: Mapping[str, Tensor], made: Any, outputs: int, bias: Tensor | None = None
) -> Tensor:
    """x `[..., I]`, bias `[O]` of x's type -> `[..., O]`; `parts` of a matrix `[O, I]` in the form `made`, a `Grouped`
    with tiles of one row and groups of a multiple of 8 (or whole rows), O being `outputs`. Inference only. Raises
    ValueError for what does not fit."""
    _check(x, parts, made, outputs, bias)
    inputs, rows = x.shape[-1], x.reshape(-1, x.shape[-1])
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    rest = [parts.get(name) for name in ("_scale", "_factor", "_zero", "_least", "_floor")]
    rest.append(None if made.table is None else table_on(made.table, x.device))
    groups, spans = parts["_scale"].shape[1], 1 if rest[1] is None else rest[1].shape[1]

    def launch(config: Config) -> None:
        block, tile, depth = config.blocks
        each = depth * (GROUP if made.bits < 8 else GROUP // 2) if block == 1 else depth
        tiles, blocks = triton.cdiv(outputs, tile), triton.cdiv(len(rows), block)
        steps, times = cut(inputs, each, tiles * blocks)
        into = y if times == 1 else torch.empty(times, len(rows), outputs, dtype=torch.float32, device=x.device)
        planes = [_plane(parts.get(name), block) for name in ("", "_high")]
        given = (rows, *planes, *rest, bias if times == 1 else None, into, rows.stride(0), len(rows), outputs, inputs,
                 triton.cdiv(inputs, CHUNK.value), groups, spans, steps)  # fmt: skip
        shape = {"BITS": made.bits, "ZERO": made.zero or 0, "ROUNDED": ROUNDINGS[made.rounded], "GROUP": made.group,
                 "SPAN": made.span, "TILE": tile}  # fmt: skip
        if block == 1:
            row_kernel[tiles, blocks, times](*given, WORDS=depth, **shape, **config.options)
        else:
            of_one_scale = min(made.group & -made.group or depth, depth)
            rows_kernel[tiles, blocks, times](
                *given, RUN=of_one_scale, ROWS=block, DEPTH=depth, **shape, **config.options
            )
        if times > 1:
            grid = triton.cdiv(outputs, JOINED), len(rows)
            join_kernel[grid](into, bias, y, len(rows), outputs, times, BLOCK=JOINED)

    single = x.dtype == torch.float32
    table = (FP32_ONE if single else ONE) if len(rows) == 1 else FP32 if single else FEW if len(rows) <= 16 else MANY
    kind = (made.bits, made.group, made.table is not None, made.rounded, parts["_scale"].dtype, *sorted(parts)[1:])
    with on_device_of(x):
        run("grouped_linear", (x.dtype, *kind, outputs, inputs, bucket(len(rows))), table, x.device, launch)
    return y


def cut(inputs: int, depth: int, programs: int) -> tuple[int, int]:
    """How many steps a program makes, and in how many parts the inputs are then: so many that a GPU is filled, where
    `programs` read a part each."""
    times, steps = max(min(PROGRAMS // programs, inputs // LEAST), 1), triton.cdiv(inputs, depth)
    return triton.cdiv(steps, times), triton.cdiv(steps, triton.cdiv(steps, times))


def table_on(table: tuple[float, ...], device: torch.device) -> Tensor:
    """A table where it is looked up: copied once, as nothing may be while a graph is recorded; a trace has its own."""
    return _copied(table, device) if torch.compiler.is_compiling() else _kept(table, device)


def _copied(table: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(table, dtype=torch.float32, device=device)


_kept = cache(_copied)


def _plane(plane: Tensor | None, block: int) -> Tensor | None:
    """Bytes, or for a single row of x words, `[O, …]`."""
    return None if plane is None else (plane.view(torch.int32) if block == 1 else plane).flatten(1)


def _check(x, parts, made, outputs, bias):
    if made.tile != 1 or made.group % GROUP:
        raise ValueError(f"grouped_linear: tiles of {made.tile} rows, groups of {made.group} inputs; the kernel takes "
                         f"tiles of 1 and groups of a multiple of {GROUP}")  # fmt: skip
    wanted = {**made.parts((outputs, x.shape[-1])), **({} if bias is None else {"bias": ((outputs,), x.dtype)})}
    for name, (shape, dtype) in wanted.items():
        each, called = bias if name == "bias" else parts.get(name), name.strip("_") or "plane"
        if each is None:
            raise ValueError(f"grouped_linear: there is no {called}, expected {dtype} {list(shape)}")
        if each.dtype != dtype or each.shape != shape or not each.is_contiguous():
            raise ValueError(f"grouped_linear: {called} is {each.dtype} {list(each.shape)} with strides "
                             f"{each.stride()}, expected contiguous {dtype} {list(shape)}")  # fmt: skip
        if each.device != x.device:
            raise ValueError(f"grouped_linear: {called} is on {each.device}, x on {x.device}")
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"grouped_linear: the last dimension of x has stride {x.stride(-1)}, expected 1")
