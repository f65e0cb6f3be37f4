"""y = x Wᵀ + b for many rows of x, a prompt's, and a W of few bits in tiles (`weights/grouped.py`): as fast as the
instruction goes that adds two products of 16-bit numbers to a sum (AVX512-VNNI).

    y[r, o] = Σ over chunks c of  p[r, c] s[o, c] Σ over i in c of  n[r, i] w[o, i]

W's numbers w, less their zeros, are written out as int16, for two tiles and 256 columns at a time, which stay in the
fastest cache while all rows of x go by, six at a time: their 12 sums stay in registers. x is p n as in `whole.py`. s is
W's scale; where scales are whole numbers in units of a factor, and fit, w is multiplied with them and s is the factor.
A chunk is 32 columns, or 16 where scales that do not fit change so often.

Inputs lie in fours as 0, 2, 1, 3, in x and in W: of four bytes the even and the odd ones are two pairs of 16 bits.

Shapes: R rows of x, filled up to a multiple of 6, I inputs, C chunks, G groups, S spans of a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.core.cgutils import get_or_insert_function

from minillm.ops.cpu.loops.jit import aligned, array, array_of, function, inline, kernel, parallel, threads
from minillm.ops.cpu.loops.tiles.dots import LINE, at_place, same_word
from minillm.ops.cpu.loops.tiles.products import put
from minillm.ops.cpu.loops.tiles.scales import CODE, NATURAL, fill, fill_numbers, grouping, places, room
from minillm.ops.cpu.loops.tiles.shorts import APART, BLOCK, SCALES, TILES, WRITTEN, split, write_block
from minillm.ops.cpu.loops.tiles.whole import CHUNK, INTS
from minillm.ops.cpu.loops.vector import BYTE, FLOAT, FLOATS, INT, LANES, fused, intrinsic, load, same

TOGETHER = 6  # rows of x whose sums, with two tiles, stay in registers
FITS = 32  # numbers times codes are at most 32 * 128; 32 of these times half of `whole.MOST` fit a sum
NARROW = 15  # up to which the same is true of all of it


def _ask_near(builder: Any, pointer: Any) -> None:
    """Have a line brought into the first cache: it is read a thousand cycles later."""
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, INT, INT, INT])
    call = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(call, [pointer, INT(0), INT(3), INT(1)])


def _rows(builder: Any, start: Any, step: Any, size: int, index: Any) -> list[Any]:
    """Where item `index`, of so many bytes, of each row lies."""
    first = builder.add(start, builder.mul(index, index.type(size)))
    return [builder.add(first, builder.mul(step, step.type(r))) for r in range(TOGETHER)]


@intrinsic
def _begin(typing: Any, least: Any, least_2: Any, x: Any, stride: Any, groups: Any, y: Any) -> Any:
    """y `[6, 2, 16]` = minus the products of minima of two tiles, `[G, 16]` each, and sums of six rows of x over G
    groups, which may be 0. All are addresses and sizes."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        *least, x, stride, groups, y = given
        sums = [cgutils.alloca_once_value(builder, same(FLOAT, 0.0)) for _ in range(TOGETHER * TILES)]
        with cgutils.for_range(builder, groups) as loop:
            places = [builder.add(each, builder.mul(loop.index, each.type(LINE))) for each in least]
            less = [builder.fneg(builder.load(at_place(builder, place, 0, FLOATS), align=4)) for place in places]
            for r, place in enumerate(_rows(builder, x, stride, 4, loop.index)):
                of_x = builder.bitcast(same_word(builder, place, 0), FLOATS)
                for each, off in zip(sums[r * TILES : (r + 1) * TILES], less, strict=True):
                    builder.store(fused(builder, of_x, off, builder.load(each)), each)
        for i, each in enumerate(sums):
            builder.store(builder.load(each), at_place(builder, y, LINE * i, FLOATS), align=LINE)
        return context.get_dummy_value()

    return types.none(*[types.intp] * 6), generate


def _chunk(builder: Any, steps: int, w: Any, x: Any) -> list[Any]:
    """The sums of products of a chunk, of so many pairs of columns, for each row of x and each tile."""
    kind = ir.FunctionType(INTS, [INTS, INTS, INTS])
    dot = get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpwssds.512")
    found = [same(INT, 0)] * (TOGETHER * TILES)
    for n in range(steps):
        lines = [builder.load(at_place(builder, w, LINE * (TILES * n + t), INTS), align=LINE) for t in range(TILES)]
        for r, row in enumerate(x):
            word = same_word(builder, row, 4 * n)
            for t in range(TILES):
                found[r * TILES + t] = builder.call(dot, [found[r * TILES + t], lines[t], word])
    return found


def _multiplying(columns: int) -> Any:
    steps = columns // 2  # each takes two inputs of each row

    @intrinsic
    def multiply(
        typing: Any, w: Any, x: Any, stride: Any, scales: Any, powers: Any, apart: Any, chunks: Any, y: Any
    ) -> Any:
        """y `[6, 2, 16]` += some chunks of two tiles times six rows of x, which begin so many bytes apart, their powers
        likewise. All are addresses and sizes."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            w, x, stride, scales, powers, apart, chunks, y = given
            sums = [cgutils.alloca_once(builder, FLOATS) for _ in range(TOGETHER * TILES)]
            for i, each in enumerate(sums):
                builder.store(builder.load(at_place(builder, y, LINE * i, FLOATS), align=LINE), each)

            with cgutils.for_range(builder, chunks) as loop:
                at = builder.add(w, builder.mul(loop.index, w.type(TILES * LINE * steps)))
                of_x = _rows(builder, x, stride, 4 * steps, loop.index)
                found = _chunk(builder, steps, at, of_x)
                of_chunk = builder.add(scales, builder.mul(loop.index, w.type(TILES * LINE)))
                scale = [builder.load(at_place(builder, of_chunk, LINE * t, FLOATS), align=LINE) for t in range(TILES)]
                for row in of_x:
                    further = builder.add(row, builder.mul(stride, stride.type(TOGETHER)))
                    _ask_near(builder, builder.inttoptr(further, BYTE.as_pointer()))
                for r, place in enumerate(_rows(builder, powers, apart, 4, loop.index)):
                    power = builder.bitcast(same_word(builder, place, 0), FLOATS)
                    for t in range(TILES):
                        each = sums[r * TILES + t]
                        value = builder.fmul(builder.sitofp(found[r * TILES + t], FLOATS), power)
                        builder.store(fused(builder, value, scale[t], builder.load(each)), each)
            for i, each in enumerate(sums):
                builder.store(builder.load(each), at_place(builder, y, LINE * i, FLOATS), align=LINE)
            return context.get_dummy_value()

        return types.none(*[types.intp] * 8), generate

    return multiply


_multiply_whole, _multiply_halves = (_multiplying(columns) for columns in (CHUNK, CHUNK // 2))


@function
def _fill(at: Any, kinds: Any, tile: int, counts: Any, coded: bool, made: Any) -> None:
    fill(at, kinds, tile, counts, made)
    if coded:
        fill_numbers(at[3], kinds[1], tile, counts[1], made[2])


@parallel
def _multiply(
    x: Any, powers: Any, sums: Any, at: Any, form: Any, counts: Any, kinds: Any, bias: Any, memory: Any, scratch: Any,
    y: Any, wanted: Any,
) -> None:  # fmt: skip
    """y `[R, O]` by runs of pairs of tiles."""
    (rows, padded, outputs, runs), (_, _, _, _, halves, coded, _, _, chunks) = wanted, form
    x_at, powers_at, sums_at = x.ctypes.data, powers.ctypes.data, sums.ctypes.data
    memory_at, scratch_at = memory.ctypes.data, scratch.ctypes.data
    tiles, groups = -(-outputs // LANES), counts[0] if len(sums) else 0
    pairs, per, stride = -(-tiles // TILES), 2 if halves else 1, 2 * (chunks * CHUNK + APART)
    for each in prange(runs):
        run = np.int64(each)
        w_at = scratch_at + run * _scratch(padded)
        scales_at = w_at + 2 * WRITTEN
        sums_of_y = scales_at + 4 * SCALES
        found = array_of(sums_of_y, padded * TILES * LANES, np.float32)
        made = places(memory_at, TILES * run, counts, chunks)
        made_2 = places(memory_at, TILES * run + 1, counts, chunks)
        for pair in range(run * pairs // runs, (run + 1) * pairs // runs):
            tile = TILES * pair
            other = min(tile + 1, tiles - 1)
            _fill(at, kinds, tile, counts, coded, made)
            _fill(at, kinds, other, counts, coded, made_2)
            for r in range(0, padded, TOGETHER):
                _begin(made[1], made_2[1], sums_at + 4 * r * groups, 4 * groups, groups, sums_of_y + r * TILES * LINE)
            for first in range(0, chunks, BLOCK // CHUNK):
                last = min(first + BLOCK // CHUNK, chunks)
                write_block(at, tile, form, counts, made, (first, last), (w_at, scales_at))
                write_block(at, other, form, counts, made_2, (first, last), (w_at + LINE, scales_at + LINE))
                for r in range(0, padded, TOGETHER):
                    of_x, of_powers = x_at + r * stride + 2 * first * CHUNK, powers_at + 4 * per * (r * chunks + first)
                    into, count = sums_of_y + r * TILES * LINE, (last - first) * per
                    if halves:
                        _multiply_halves(w_at, of_x, stride, scales_at, of_powers, 4 * per * chunks, count, into)
                    else:
                        _multiply_whole(w_at, of_x, stride, scales_at, of_powers, 4 * per * chunks, count, into)
            for r in range(rows):
                for t in range(other - tile + 1):
                    start = (tile + t) * LANES
                    value = load(found, (r * TILES + t) * LANES)
                    put(value, y, r * outputs + start, bias, start, outputs, made, False)


@inline
def _scratch(padded: int) -> int:
    """Bytes that a run needs."""
    return 2 * WRITTEN + 4 * SCALES + padded * TILES * LINE


@kernel
def linear(x_at: int, at: Any, bias_at: int, y_at: int, sizes: Any, form: Any, like: Any) -> None:
    """As `products.linear`, but for tables of two bytes, which do not fit."""
    (rows, inputs, outputs), (bits, group, span, zero, kind, factor_kind, steps, high_steps, _) = sizes, form
    chunks, (group, counts) = -(-inputs // CHUNK), grouping(group, span, inputs)
    most = max(zero, 2**bits - 1 - zero)
    coded = kind == CODE and at[7] == 0 and at[3] != 0 and most <= FITS and span % CHUNK == 0
    halves = group == LANES and not coded
    padded = -(-rows // TOGETHER) * TOGETHER
    x, y = array(x_at, rows * inputs, like), array(y_at, rows * outputs, like)
    n, powers = aligned(padded * (chunks * CHUNK + APART), np.int16), np.ones(2 * padded * chunks, np.float32)
    n[rows * (chunks * CHUNK + APART) :] = 0
    sums = np.zeros(padded * counts[0] if at[5] else 0, np.float32)
    split(x, rows, chunks, (halves, coded and most > NARROW, group), n, powers, sums)
    bias, runs = array(bias_at, outputs if bias_at else 0, like), min(np.int64(threads()), -(-outputs // LANES))
    laid = bits, group, span, zero, np.int64(halves), np.int64(coded), steps, high_steps, chunks
    scratch = aligned(runs * _scratch(padded), np.int8)
    memory = room(counts, chunks, TILES * runs)
    kinds, wanted = (kind, factor_kind, NATURAL), (rows, padded, outputs, runs)
    _multiply(n, powers, sums, at, laid, counts, kinds, bias, memory, scratch, y, wanted)
