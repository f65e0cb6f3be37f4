"""Numbers of 16 bits for `many.py`: those of W, less their zeros and perhaps times codes of scales, and those of x,
which is p n as in `whole.py`.

Inputs lie in fours as 0, 2, 1, 3, in both: of four bytes the even and the odd ones are two pairs of 16 bits.

Shapes: R rows of x, I inputs, C chunks of 32 columns, G groups, S spans of a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import get_or_insert_function
from numba.np.arrayobj import make_array

from minillm.ops.cpu.loops.jit import aligned, array_of, function, parallel
from minillm.ops.cpu.loops.tiles.dots import LINE, LOW_BYTES, TABLE, at_place, looked_up, of_chunk
from minillm.ops.cpu.loops.tiles.products import UNIT
from minillm.ops.cpu.loops.tiles.whole import CHUNK, INTS, power_of
from minillm.ops.cpu.loops.vector import (
    FLOATS,
    INT,
    LANES,
    SHORT,
    constant,
    floats,
    intrinsic,
    load,
    number,
    same,
    splat,
    store,
    total,
    zeros,
)

TILES = 2  # that are written out side by side
BLOCK = 8 * CHUNK  # columns that are written out at a time
WRITTEN = TILES * LANES * BLOCK  # numbers of them
SCALES = TILES * LANES * BLOCK // LANES  # of them, if each 16 columns have some
APART = CHUNK  # numbers between two rows of x, which a power of two apart would share few lines of the cache
SHORTS = ir.VectorType(SHORT, 2 * LANES)


def _in_pairs(builder: Any, x: Any) -> Any:
    """Floats as int16, each twice."""
    words = builder.and_(builder.fptosi(x, INTS), same(INT, 0xFFFF))
    return builder.bitcast(builder.or_(words, builder.shl(words, same(INT, 16))), SHORTS)


def _writing(bits: int) -> Any:
    @intrinsic
    def write(
        typing: Any, at: Any, high_at: Any, table: Any, less: Any, less_2: Any, times: Any, times_2: Any, to: Any
    ) -> Any:  # fmt: skip
        """The numbers of a chunk of a tile to an address, 16 lines that are `TILES` lines apart: less zeros, times
        codes, which are those of its first half and of its second."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            at, high_at, table, *factors, to = given
            lines = of_chunk(builder, max(bits, 4), at, high_at)
            if bits == TABLE:
                lines = [builder.bitcast(looked_up(builder, table, LOW_BYTES, q), INTS) for q in lines]
            less, times = ([_in_pairs(builder, each) for each in pair] for pair in (factors[:2], factors[2:]))
            for n, line in enumerate(lines):
                half = n // (len(lines) // 2)
                for odd in range(2):
                    both = builder.and_(builder.lshr(line, same(INT, 8 * odd)), same(INT, 0xFF00FF))
                    value = builder.sub(builder.bitcast(both, SHORTS), less[half])
                    place = at_place(builder, to, TILES * LINE * (2 * n + odd), SHORTS)
                    builder.store(builder.mul(value, times[half]), place, align=LINE)
            return context.get_dummy_value()

        place = types.intp
        return types.none(place, place, place, floats, floats, floats, floats, place), generate

    return write


_write_4, _write_5, _write_6, _write_8, _write_table = (_writing(bits) for bits in (4, 5, 6, 8, TABLE))


@function
def _write(bits: int, w: Any, of_zeros: Any, codes: Any, to: int) -> None:
    (at, high_at, table), (less, less_2), (times, times_2) = w, of_zeros, codes
    if bits == 4:
        _write_4(at, high_at, table, less, less_2, times, times_2, to)
    elif bits == 5:
        _write_5(at, high_at, table, less, less_2, times, times_2, to)
    elif bits == 6:
        _write_6(at, high_at, table, less, less_2, times, times_2, to)
    elif bits == 8:
        _write_8(at, high_at, table, less, less_2, times, times_2, to)
    else:
        _write_table(at, high_at, table, less, less_2, times, times_2, to)


@intrinsic
def _store_whole(typing: Any, y: Any, start: Any, x: Any) -> Any:
    """y[start : start + 16] = floats, rounded to int16, in each four the second and third exchanged."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        y, start, x = given
        rint = get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS]), "llvm.rint.v16f32")
        value = builder.trunc(builder.fptosi(builder.call(rint, [x]), INTS), ir.VectorType(SHORT, LANES))
        order = [place // 4 * 4 + (0, 2, 1, 3)[place % 4] for place in range(LANES)]
        value = builder.shuffle_vector(value, value, constant(INT, order))
        data = make_array(signature.args[0])(context, builder, y).data
        builder.store(value, builder.bitcast(builder.gep(data, [start]), value.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.none(y, types.intp, floats), generate


@parallel
def split(x: Any, rows: int, chunks: int, wanted: Any, n: Any, powers: Any, sums: Any) -> None:
    """x as n `[R, I + APART]` and p `[R, C]`, or where there are `halves` two for each chunk; and where there is room
    for them its sums over groups, `[R, G]`."""
    halves, doubled, group = wanted
    inputs, stride = len(x) // rows, chunks * CHUNK + APART
    groups = len(sums) // (len(n) // stride)
    for each in prange(rows):
        r, near = np.int64(each), aligned(chunks * CHUNK, np.float32)
        for i in range((chunks - 1) * CHUNK, chunks * CHUNK, LANES):
            store(near, i, zeros())
        for i in range(0, inputs // LANES * LANES, LANES):
            store(near, i, load(x, r * inputs + i))
        for i in range(inputs // LANES * LANES, inputs):
            near[i] = number(x[r * inputs + i])
        for c in range(chunks):
            power = power_of(near, c * CHUNK) * np.float32(2 if doubled else 1)
            inverse = splat(np.float32(1) / power)
            for i in range(c * CHUNK, (c + 1) * CHUNK, LANES):
                _store_whole(n, r * stride + i, load(near, i) * inverse)
            for part in range(2 if halves else 1):
                powers[(r * chunks + c) * (2 if halves else 1) + part] = power
        for g in range(groups):
            result = zeros()
            for i in range(g * group, min((g + 1) * group, chunks * CHUNK), LANES):
                result = result + load(near, i)
            sums[r * groups + g] = total(result)


@function
def write_block(at: Any, tile: int, form: Any, counts: Any, made: Any, some: Any, to: Any) -> None:
    """Chunks of 32 columns of a tile, from `first` to `last`, and their scales."""
    bits, group, span, zero, halves, coded, steps, high_steps, chunks = form
    (first, last), (to_numbers, scales_to) = some, to
    size = counts[0] * LANES
    scales, less = array_of(made[0], size, np.float32), array_of(made[1], size, np.float32)
    factors, codes = array_of(made[2], counts[1] * LANES, np.float32), array_of(at[2] + tile * size, size, np.int8)
    unit = array_of(at[7], UNIT + 1, np.float32)[UNIT] if at[7] else np.float32(1)
    into, zero_of_all, one = array_of(scales_to, SCALES, np.float32), splat(np.float32(zero)), splat(np.float32(1))
    for c in range(first, last):
        g = c * CHUNK // group
        h = min((c * CHUNK + LANES) // group, counts[0] - 1)  # of a half that the row has not, x is zeros
        place = tile * chunks + c
        w = at[0] + place * steps, at[1] + place * high_steps, at[7]
        of_zeros = (load(less, g * LANES), load(less, h * LANES)) if at[4] else (zero_of_all, zero_of_all)
        times = (load(codes, g * LANES), load(codes, h * LANES)) if coded else (one, one)
        _write(bits, w, of_zeros, times, to_numbers + (c - first) * TILES * LINE * LANES)
        at_scale = (c - first) * TILES * LANES
        if coded:
            store(into, at_scale, load(factors, (c * CHUNK // span if span else 0) * LANES))
        elif halves:
            store(into, 2 * at_scale, load(scales, g * LANES) * unit)
            store(into, 2 * at_scale + TILES * LANES, load(scales, h * LANES) * unit)
        else:
            store(into, at_scale, load(scales, g * LANES) * unit)
