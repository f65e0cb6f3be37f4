"""y = x Wᵀ + b for a few rows of x and a W of `weights/grouped.py` in tiles of 16 rows, which are the 16 places of a
vector: as fast as the numbers can be read.

A thread takes tiles one after the other, so that it reads one long stretch of memory. Four bytes of x, of two bytes for
a number (`whole.py`), go to all places and are multiplied with four numbers of each row by one instruction. Zeros of
groups, like minima, are taken off with the sums of x of their groups; a zero that all have the same, in whole numbers.

Shapes: R rows of x, T tiles, C chunks of 32 columns, G groups, S spans of a factor.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import get_or_insert_function
from numba.np.arrayobj import make_array

from minillm.ops.cpu.loops.integers import _dot, _in_all, power
from minillm.ops.cpu.loops.jit import aligned, array, function, inline, kernel, parallel
from minillm.ops.cpu.loops.vector import (
    BYTE,
    FLOATS,
    INT,
    LANES,
    floats,
    intrinsic,
    load,
    madd,
    number,
    read,
    rounded,
    same,
    splat,
    store,
    zeros,
)
from minillm.ops.cpu.loops.whole import CHUNK, INTS, split, sum_of

LINE = 64  # bytes of a step: four numbers, or twice four, of each row
HIGH = {types.uint32: (8, 1), types.uint16: (4, 2)}  # of high bits, by what says so: steps of a line, bits of a number


def _of_chunk(context: Any, builder: Any, kinds: Any, m: Any, at: Any, high_at: Any) -> Any:
    """The numbers of a chunk, one line after the other: four inputs of each row."""
    plane, high, like = builder.extract_value(m, 0), builder.extract_value(m, 1), kinds[2].dtype

    def line(part: int, start: Any, index: int) -> Any:
        data = (plane, high)[part]
        return read(context, builder, kinds[part], data, builder.add(start, start.type(LINE * index)), INT)

    def byte(value: int) -> Any:
        return same(INT, value * 0x01010101)

    if like == types.int8:
        return [line(0, at, n) for n in range(8)]
    found = []
    for n in range(8):
        both = line(0, at, n // 2)
        q = builder.and_(builder.lshr(both, same(INT, 4)) if n % 2 else both, byte(15))
        if like in HIGH:
            steps, bits = HIGH[like]
            rest, shift = line(1, high_at, n // steps), bits * (n % steps) - 4
            rest = builder.lshr(rest, same(INT, shift)) if shift > 0 else builder.shl(rest, same(INT, -shift))
            q = builder.or_(q, builder.and_(rest, byte((2**bits - 1) << 4)))
        found.append(q)
    return found


def _multiplied(context: Any, builder: Any, kinds: Any, lines: Any, x: Any, of_chunk: Any, half: int, parts: int) -> Any:
    """The sums over a chunk, or half of one, of numbers times n of x, less what is taken off, as floats."""
    bytes_of_x, taken = (builder.extract_value(x, i) for i in (0, 2))
    word = of_chunk.type

    def part_of_x(byte: int, n: int) -> Any:
        at = builder.add(builder.mul(of_chunk, word(2 * CHUNK)), word(byte * CHUNK + 4 * n))
        one = read(context, builder, kinds[0], bytes_of_x, at, INT, 1)
        return builder.shuffle_vector(one, one, same(INT, 0))

    at = builder.add(builder.mul(of_chunk, word(2)), word(half))
    off = read(context, builder, kinds[2], taken, at, INT, 1)
    low, high = builder.shuffle_vector(off, off, same(INT, 0)), same(INT, 0)
    count = len(lines) // parts
    for n in range(half * count, half * count + count):
        high = _dot(builder, high, lines[n], part_of_x(0, n))
        low = _dot(builder, low, lines[n], part_of_x(1, n))
    return builder.sitofp(builder.add(builder.shl(high, same(INT, 8)), low), FLOATS)


def _dots(rows: int, parts: int) -> Any:
    @intrinsic
    def dots(typing: Any, m: Any, at: Any, high_at: Any, x: Any, of_chunk: Any, apart: Any) -> Any:
        """The chunk of W at `at` times chunks `of_chunk`, `of_chunk + apart`, … of x, less their powers: of each row
        of x one vector, or one for each half of the chunk."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            m_kind, _, _, x_kind, _, _ = signature.args
            m, at, high_at, x, of_chunk, apart = given
            lines = _of_chunk(context, builder, m_kind.types, m, at, high_at)
            found = []
            for r in range(rows):
                chunk = builder.add(of_chunk, builder.mul(apart, apart.type(r)))
                for half in range(parts):
                    found.append(_multiplied(context, builder, x_kind.types, lines, x, chunk, half, parts))
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(floats, rows * parts)(m, types.intp, types.intp, x, types.intp, types.intp), generate

    return dots


_one, _one_halved = _dots(1, 1), _dots(1, 2)


@inline
def _row(m: Any, at: int, high_at: int, x: Any, r: int, sizes: Any, scales: Any, y: Any) -> Any:
    """y + a tile times row r of x, its scales given."""
    chunks, group, steps, high_steps = sizes
    first = r * chunks
    if group == LANES:
        for c in range(chunks):
            v, w = _one_halved(m, at + c * steps, high_at + c * high_steps, x, first + c, 0)
            p = power(x[1], first + c)
            y = madd(v * p, load(scales, c * 2 * LANES), y)
            y = madd(w * p, load(scales, c * 2 * LANES + LANES), y)
        return y
    per = group // CHUNK
    for start in range(0, chunks, per):
        sums = zeros()
        for c in range(start, min(start + per, chunks)):
            (v,) = _one(m, at + c * steps, high_at + c * high_steps, x, first + c, 0)
            sums = madd(v, power(x[1], first + c), sums)
        y = madd(sums, load(scales, start // per * LANES), y)
    return y


@intrinsic
def _bytes(typing: Any, array: Any, start: Any) -> Any:
    """array[start : start + 16], bytes without a sign, as floats."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.uitofp(read(context, builder, signature.args[0], *given, BYTE), FLOATS)

    return floats(array, types.intp), generate


@function
def _numbers(at: int, kind: int, first: int, count: int, made: Any) -> None:
    """made `[count, 16]` = what lies at an address from vector `first` on."""
    start, end = first * LANES, (first + count) * LANES
    halves, bfloats = array(at, end, np.empty(0, np.int16)), array(at, end, np.empty(0, np.uint16))
    whole, codes = array(at, end, np.empty(0, np.float32)), array(at, end, np.empty(0, np.int8))
    naturals = array(at, end, np.empty(0, np.uint8))
    for i in range(start, end if kind == 0 else start, LANES):
        store(made, i - start, load(halves, i))
    for i in range(start, end if kind == 1 else start, LANES):
        store(made, i - start, load(bfloats, i))
    for i in range(start, end if kind == 2 else start, LANES):
        store(made, i - start, load(whole, i))
    for i in range(start, end if kind == 3 else start, LANES):
        store(made, i - start, load(codes, i))
    for i in range(start, end if kind == 4 else start, LANES):
        store(made, i - start, _bytes(naturals, i))


@function
def _in_units(at: int, kind: int, tile: int, groups: int, units: Any, made: Any, factors: Any) -> None:
    """made `[G, 16]`: scales, or minima, of a tile times their factors."""
    factor_at, factor_kind, spans, per = units
    _numbers(at, kind, tile * groups, groups, made)
    if factor_at:
        _numbers(factor_at, factor_kind, tile * spans, spans, factors)
        for g in range(groups):
            store(made, g * LANES, load(made, g * LANES) * load(factors, g // per * LANES))


@parallel
def _multiply(m: Any, x: Any, sums: Any, rest: Any, form: Any, bias: Any, y: Any, sizes: Any) -> None:
    """y `[R, O]` by runs of tiles."""
    rows, outputs, chunks, groups, runs = sizes
    scale_at, factor_at, zero_at, least_at, floor_at = rest
    group, spans, per, kind, factor_kind, steps, high_steps = form
    tiles = -(-outputs // LANES)
    for each in prange(runs):
        run = np.int64(each)
        scales, least = np.zeros((2 * chunks + 1) * LANES, np.float32), np.empty(groups * LANES, np.float32)
        factors, made = np.empty(spans * LANES, np.float32), np.empty(LANES, np.float32)
        for tile in range(run * tiles // runs, (run + 1) * tiles // runs):
            _in_units(scale_at, kind, tile, groups, (factor_at, factor_kind, spans, per), scales, factors)
            if least_at:
                _in_units(least_at, kind, tile, groups, (floor_at, factor_kind, spans, per), least, factors)
            if zero_at:
                _numbers(zero_at, 4, tile * groups, groups, least)
                for g in range(groups):
                    store(least, g * LANES, load(least, g * LANES) * load(scales, g * LANES))
            at, high_at, first = tile * chunks * steps, tile * chunks * high_steps, tile * LANES
            for r in range(rows):
                value = zeros()
                for g in range(groups if len(sums) else 0):
                    value = madd(load(least, g * LANES), splat(sums[r * groups + g]), value)
                value = _row(m, at, high_at, x, r, (chunks, group, steps, high_steps), scales, zeros() - value)
                store(made, 0, value)
                for k in range(min(LANES, outputs - first)):
                    of_bias = number(bias[first + k]) if len(bias) else np.float32(0)
                    y[r * outputs + first + k] = rounded(made[k] + of_bias, y)


@function
def _sums(x: Any, rows: int, chunks: int, group: int, groups: int) -> Any:
    """The sums of x over groups, `[R, G]`."""
    made, halves = np.empty(rows * groups, np.float32), group // LANES
    for r in range(rows):
        for g in range(groups):
            made[r * groups + g] = sum_of(x, r, g * halves, min((g + 1) * halves, 2 * chunks), chunks)
    return made


@inline
def _taken(sums: Any, zero: int, group: int) -> Any:
    """What a zero that all numbers have takes off the products of a chunk, or of each half of one."""
    made = np.empty_like(sums)
    for i in range(0, len(sums), 2):
        first, second = -zero * sums[i], -zero * sums[i + 1]
        made[i], made[i + 1] = (first, second) if group == LANES else (first + second, 0)
    return made


@kernel
def linear(
    x_at: int, at: Any, bias_at: int, y_at: int, sizes: Any, form: Any, x_like: Any, like: Any
) -> None:
    """y `[R, O]` of x `[R, I]` and the matrix `[O, I]` at `at`: addresses of its plane, of high bits, scales, factors,
    zeros, minima and their factors, 0 for none. sizes are R, I and O, form is size of groups and spans, zero and kinds of scales and factors."""
    (rows, inputs, outputs), (group, span, zero, kind, factor_kind, steps, high_steps) = sizes, form
    chunks = -(-inputs // CHUNK)
    group = group if group else chunks * CHUNK
    groups, spans = -(-inputs // group), -(-inputs // span) if span else 1
    numbers, tiles = np.empty(0, np.uint8), -(-outputs // LANES)
    m = array(at[0], tiles * chunks * steps, numbers), array(at[1], tiles * chunks * high_steps, numbers), like
    x, y = split(array(x_at, rows * inputs, x_like), rows), array(y_at, rows * outputs, x_like)
    sums = _sums(x, rows, chunks, group, groups) if at[4] or at[5] else np.empty(0, np.float32)
    x = x[0], x[1], _taken(x[2], zero, group)
    bias = array(bias_at, outputs if bias_at else 0, x_like)
    runs = min(numba.get_num_threads(), tiles)
    parts = group, spans, span // group if span else groups, kind, factor_kind, steps, high_steps
    _multiply(m, x, sums, (at[2], at[3], at[4], at[5], at[6]), parts, bias, y, (rows, outputs, chunks, groups, runs))
