"""Matrices in tiles of 16 rows, row by row as numbers: written out for products with many rows of x, and for those that
`tiles.py` does not take: of fp32, or on a processor that does not multiply bytes.

Shapes: R rows of x, T tiles, C chunks of 32 columns, G groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import get_or_insert_function

from minillm.ops.cpu.loops.jit import aligned, array, array_of, function, inline, kernel, parallel, threads
from minillm.ops.cpu.loops.products import dot
from minillm.ops.cpu.loops.tiles.floats import multiply, takes, widened_rows
from minillm.ops.cpu.loops.tiles.scales import BFLOAT, CHUNK, HALF, NATURAL, fill, grouping, places, room
from minillm.ops.cpu.loops.vector import (
    BYTE,
    FLOAT,
    FLOATS,
    INT,
    LANES,
    constant,
    floats,
    intrinsic,
    number,
    rounded,
    rounded_bits,
    same,
    splat,
    store,
    widened,
)

LINE, STEPS = 64, 8  # bytes of four inputs of each row; steps of four inputs of a chunk
NEAR = 8  # chunks of all rows of a tile that stay in the fastest cache meanwhile


def _words(builder: Any, at: Any, count: int) -> Any:
    """Four bytes of each of the lines from an address on."""
    found = ir.Constant(ir.VectorType(INT, count), ir.Undefined)
    for n in range(count):
        pointer = builder.inttoptr(builder.add(at, at.type(LINE * n)), INT.as_pointer())
        found = builder.insert_element(found, builder.load(pointer, align=1), INT(n))
    return found


def _high(builder: Any, at: Any, bits: int) -> Any:
    """The high bits of a chunk of a row, in eight words, where they go."""
    steps, mask = STEPS // bits, ((2**bits - 1) << 4) * 0x01010101
    words = _words(builder, at, bits)
    words = builder.shuffle_vector(words, words, constant(INT, [n // steps for n in range(STEPS)]))
    shifted = builder.lshr(words, constant(INT, [bits * (n % steps) for n in range(STEPS)]))
    return builder.and_(builder.shl(shifted, same(INT, 4, STEPS)), same(INT, mask, STEPS))


def _numbers_of(bits: int) -> Any:
    @intrinsic
    def numbers(typing: Any, at: Any, high_at: Any) -> Any:
        """The 32 numbers of a chunk of a row, from the row's first bytes on, as floats."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            if bits == 8:
                words = _words(builder, given[0], STEPS)
            else:
                both = _words(builder, given[0], STEPS // 2)
                low = builder.and_(both, same(INT, 0x0F0F0F0F, STEPS // 2))
                high = builder.and_(builder.lshr(both, same(INT, 4, STEPS // 2)), same(INT, 0x0F0F0F0F, STEPS // 2))
                order = [n // 2 + n % 2 * (STEPS // 2) for n in range(STEPS)]
                words = builder.shuffle_vector(low, high, constant(INT, order))
            if bits in (5, 6):
                words = builder.or_(words, _high(builder, given[1], bits - 4))
            found = builder.bitcast(words, ir.VectorType(BYTE, 2 * LANES))
            places = (constant(INT, range(start, start + LANES)) for start in (0, LANES))
            halves = [builder.uitofp(builder.shuffle_vector(found, found, half), FLOATS) for half in places]
            return context.make_tuple(builder, signature.return_type, halves)

        return types.UniTuple(floats, 2)(types.intp, types.intp), generate

    return numbers


@intrinsic
def _looked_up(typing: Any, table_at: Any, x: Any) -> Any:
    """What a table of fp32 has at each of 16 places."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        places = builder.zext(builder.fptoui(given[1], ir.VectorType(INT, LANES)), ir.VectorType(ir.IntType(64), LANES))
        base = same(ir.IntType(64), 0)
        base = builder.insert_element(base, given[0], INT(0))
        base = builder.shuffle_vector(base, base, same(INT, 0))
        where = builder.add(base, builder.shl(places, same(ir.IntType(64), 2)))
        pointers = builder.inttoptr(where, ir.VectorType(FLOAT.as_pointer(), LANES))
        flags, kind = ir.VectorType(ir.IntType(1), LANES), ir.VectorType(FLOAT.as_pointer(), LANES)
        gather = ir.FunctionType(FLOATS, [kind, INT, flags, FLOATS])
        call = get_or_insert_function(builder.module, gather, "llvm.masked.gather.v16f32.v16p0")
        return builder.call(call, [pointers, INT(4), same(ir.IntType(1), 1), same(FLOAT, 0.0)])

    return floats(types.intp, floats), generate


_numbers_4, _numbers_5, _numbers_6, _numbers_8 = (_numbers_of(bits) for bits in (4, 5, 6, 8))


@inline
def _numbers(bits: int, at: int, high_at: int) -> Any:
    if bits == 4:
        return _numbers_4(at, high_at)
    if bits == 5:
        return _numbers_5(at, high_at)
    if bits == 6:
        return _numbers_6(at, high_at)
    return _numbers_8(at, high_at)


@inline
def _value(q: Any, at: Any, zero: Any, scales: Any, less: Any, place: int) -> Any:
    """What 16 numbers of a row stand for; `place` is where its group's scale is."""
    if at[7]:
        return _looked_up(at[7], q) * splat(scales[place])
    if at[5]:
        return q * splat(scales[place]) - splat(less[place])
    return (q - splat(less[place] if at[4] else zero)) * splat(scales[place])


def _rounding(dtype: Any) -> Any:
    @intrinsic
    def to(typing: Any, x: Any) -> Any:
        """Floats as a type has them."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            return widened(builder, rounded_bits(builder, given[0], dtype), dtype)

        return floats(x), generate

    return to


_to_half, _to_bfloat = _rounding(types.int16), _rounding(types.uint16)


@inline
def _to(x: Any, kind: int) -> Any:
    if kind == HALF:
        return _to_half(x)
    if kind == BFLOAT:
        return _to_bfloat(x)
    return x


@function
def write(tile: int, some: Any, form: Any, at: Any, made: Any, y: Any, to: Any) -> None:
    """y[to[0] + to[1] (r - low) + i :] = the numbers of row r of a tile, for rows from `low` to `high`, and chunks from
    `first` to `last`: some."""
    (low, high, first, last), (bits, group, zero, chunks, steps, high_steps, rounded) = some, form
    halves, of_zero, chunks_of = group // LANES, np.float32(zero), 2 * chunks * LANES
    scales, less = array_of(made[0], chunks_of, np.float32), array_of(made[1], chunks_of, np.float32)
    for r in range(low, high):
        w, place = at[0] + (tile * chunks + first) * steps + 4 * r, to[0] + (r - low) * to[1]
        high_w = at[1] + (tile * chunks + first) * high_steps + 4 * r
        g, used = 2 * first // halves, 2 * first % halves
        for _ in range(first, last):
            a, b = _numbers(bits, w, high_w)
            h = g + 1 if halves == 1 else g
            store(y, place, _to(_value(a, at, of_zero, scales, less, g * LANES + r), rounded))
            store(y, place + LANES, _to(_value(b, at, of_zero, scales, less, h * LANES + r), rounded))
            w, high_w, place, used = w + steps, high_w + high_steps, place + CHUNK, used + 2
            while used >= halves:
                g, used = g + 1, used - halves


@function
def write_tile(tile: int, rows: int, inputs: int, form: Any, at: Any, made: Any, near: Any, y: Any, to: int) -> None:
    """y[to:] `[rows, I]` = the first rows of a tile."""
    chunks = form[3]
    for first in range(0, chunks, NEAR):
        last = min(first + NEAR, chunks)
        columns = min(last * CHUNK, inputs) - first * CHUNK
        if columns == (last - first) * CHUNK:
            write(tile, (0, rows, first, last), form, at, made, y, (to + first * CHUNK, inputs))
            continue
        write(tile, (0, rows, first, last), form, at, made, near, (0, NEAR * CHUNK))
        for r in range(rows):
            for i in range(columns):
                y[to + r * inputs + first * CHUNK + i] = rounded(near[r * NEAR * CHUNK + i], y)


@parallel
def _write_tiles(at: Any, form: Any, counts: Any, kinds: Any, wanted: Any, memory: Any, y: Any) -> None:
    outputs, inputs, runs = wanted
    tiles, memory_at = -(-outputs // LANES), memory.ctypes.data
    for each in prange(runs):
        run = np.int64(each)
        made, near = places(memory_at, run, counts, form[3]), aligned(LANES * NEAR * CHUNK, np.float32)
        for tile in range(run * tiles // runs, (run + 1) * tiles // runs):
            fill(at, kinds, tile, counts, made)
            first = tile * LANES
            write_tile(tile, min(LANES, outputs - first), inputs, form, at, made, near, y, first * inputs)


@parallel
def _multiply(
    at: Any, form: Any, counts: Any, kinds: Any, wanted: Any, x: Any, bias: Any, memory: Any, y: Any
) -> None:  # fmt: skip
    """y `[R, O]`; a row of W is written out once for all rows of x."""
    rows, outputs, inputs, runs = wanted
    tiles, chunks, memory_at = -(-outputs // LANES), form[3], memory.ctypes.data
    for each in prange(runs):
        run = np.int64(each)
        made, values = places(memory_at, run, counts, chunks), aligned(chunks * CHUNK, np.float32)
        for tile in range(run * tiles // runs, (run + 1) * tiles // runs):
            fill(at, kinds, tile, counts, made)
            for o in range(tile * LANES, min(tile * LANES + LANES, outputs)):
                row = o - tile * LANES
                write(tile, (row, row + 1, 0, chunks), form, at, made, values, (0, 0))
                for r in range(rows):
                    value = dot(values, 0, x, r * chunks * CHUNK, inputs)
                    y[r * outputs + o] = rounded(value + number(bias[o]) if len(bias) else value, y)


@inline
def laid(inputs: int, given: Any) -> Any:
    """The form of a matrix as `write` takes it; G, S and the groups of a span; types of scales, factors and zeros."""
    bits, group, span, zero, kind, factor_kind, steps, high_steps, rounded = given
    group, counts = grouping(group, span, inputs)
    form = bits, group, zero, -(-inputs // CHUNK), steps, high_steps, rounded
    return form, counts, (kind, factor_kind, NATURAL)


@kernel
def dequantise(at: Any, y_at: int, sizes: Any, given: Any, like: Any) -> None:
    """y `[O, I]` = the matrix at `at`; sizes are O and I, the rest as in `tiles.linear`."""
    (outputs, inputs), runs = sizes, min(np.int64(threads()), -(-sizes[0] // LANES))
    form, counts, kinds = laid(inputs, given)
    memory, y = room(counts, form[3], runs), array(y_at, outputs * inputs, like)
    _write_tiles(at, form, counts, kinds, (outputs, inputs, runs), memory, y)


@kernel
def linear(x_at: int, at: Any, bias_at: int, y_at: int, sizes: Any, given: Any, like: Any) -> None:
    """As `tiles.linear`, of any x, in fp32."""
    (rows, inputs, outputs), runs = sizes, min(np.int64(threads()), -(-sizes[2] // LANES))
    form, counts, kinds = laid(inputs, given)
    x = widened_rows(array(x_at, rows * inputs, like), rows, form[3])
    y, bias = array(y_at, rows * outputs, like), array(bias_at, outputs if bias_at else 0, like)
    memory = room(counts, form[3], runs)
    if takes(at, form[6]):
        multiply(at, form, counts, kinds, (rows, outputs, runs), x, bias, memory, y)
    else:
        _multiply(at, form, counts, kinds, (rows, outputs, inputs, runs), x, bias, memory, y)
