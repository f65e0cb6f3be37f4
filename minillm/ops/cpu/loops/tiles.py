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
from numba import prange, types

from minillm.ops.cpu.loops.integers import _dot, _in_all, power
from minillm.ops.cpu.loops.jit import aligned, array, function, inline, kernel, parallel
from minillm.ops.cpu.loops.scales import NATURAL, fill, grouping, room
from minillm.ops.cpu.loops.vector import (
    BYTE,
    FLOATS,
    INT,
    LANES,
    ask_for,
    floats,
    intrinsic,
    load,
    madd,
    number,
    rounded,
    same,
    splat,
    store,
    zeros,
)
from minillm.ops.cpu.loops.whole import CHUNK, INTS, split, sum_of

AHEAD = 6144
STEPS = 8  # of a chunk: each takes four inputs of each row
LINE = 64  # bytes of a step: four numbers, or twice four, of each row


def _at(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    """The pointer to what lies `offset` bytes behind an address."""
    return builder.inttoptr(builder.add(address, address.type(offset)), kind.as_pointer())


def _line(builder: Any, address: Any, index: int) -> Any:
    """The line so many lines behind an address."""
    return builder.load(_at(builder, address, LINE * index, INTS), align=1)


def _same_word(builder: Any, address: Any, offset: int) -> Any:
    """Four bytes in all 16 places."""
    word = builder.load(_at(builder, address, offset, INT), align=1)
    return _in_all(builder, word)


def _of_chunk(builder: Any, bits: int, at: Any, high_at: Any) -> Any:
    """The numbers of the chunk that lies at an address: four inputs of each row after the other."""

    def byte(value: int) -> Any:
        return same(INT, value * 0x01010101)

    if bits == 8:
        return [_line(builder, at, n) for n in range(STEPS)]
    found = []
    for n in range(STEPS):
        both = _line(builder, at, n // 2)
        q = builder.and_(builder.lshr(both, same(INT, 4)) if n % 2 else both, byte(15))
        if bits > 4:
            wide, steps = bits - 4, 8 // (bits - 4)
            rest, shift = _line(builder, high_at, n // steps), wide * (n % steps) - 4
            rest = builder.lshr(rest, same(INT, shift)) if shift > 0 else builder.shl(rest, same(INT, -shift))
            q = builder.or_(q, builder.and_(rest, byte((2**wide - 1) << 4)))
        found.append(q)
    return found


def _multiplied(builder: Any, lines: Any, x: Any, taken: Any, half: int, parts: int) -> Any:
    """The sums over a chunk, or half of one, of numbers times n of x, less what is taken off, as floats."""
    low, high, count = _same_word(builder, taken, 4 * half), same(INT, 0), STEPS // parts
    for n in range(half * count, half * count + count):
        high = _dot(builder, high, lines[n], _same_word(builder, x, 4 * n))
        low = _dot(builder, low, lines[n], _same_word(builder, x, CHUNK + 4 * n))
    return builder.sitofp(builder.add(builder.shl(high, same(INT, 8)), low), FLOATS)


def _dots(bits: int, rows: int, parts: int) -> Any:
    @intrinsic
    def dots(typing: Any, at: Any, high_at: Any, x: Any, taken: Any, chunks: Any) -> Any:
        """The chunk of W at an address times one of x, and those of the next rows of x, less their powers: of each row
        of x one vector, or one for each half of the chunk."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            at, high_at, x, taken, chunks = given
            lines, found = _of_chunk(builder, bits, at, high_at), []
            for index in range(STEPS if bits == 8 else STEPS // 2):
                ask_for(builder, _at(builder, at, AHEAD + LINE * index, BYTE))
            for r in range(rows):
                further = builder.mul(chunks, chunks.type(r))
                of_x = builder.add(x, builder.mul(further, further.type(2 * CHUNK)))
                off = builder.add(taken, builder.mul(further, further.type(8)))
                found += [_multiplied(builder, lines, of_x, off, half, parts) for half in range(parts)]
            return context.make_tuple(builder, signature.return_type, found)

        whole = types.intp
        return types.UniTuple(floats, rows * parts)(whole, whole, whole, whole, whole), generate

    return dots


def _row(bits: int) -> Any:
    one, halved = _dots(bits, 1, 1), _dots(bits, 1, 2)

    @function
    def row(at: int, high_at: int, x: Any, sizes: Any, scales: Any, y: Any) -> Any:
        """y + a tile times a row of x, its scales given."""
        bytes_at, taken_at, powers, first = x
        chunks, groups, group, steps, high_steps = sizes
        if group == LANES:
            for c in range(chunks):
                v, w = halved(at, high_at, bytes_at, taken_at, 0)
                of_chunk = madd(w, load(scales, (2 * c + 1) * LANES), v * load(scales, 2 * c * LANES))
                y = madd(of_chunk, power(powers, first + c), y)
                at, high_at, bytes_at, taken_at = at + steps, high_at + high_steps, bytes_at + 2 * CHUNK, taken_at + 8
            return y
        per, last = group // CHUNK, 0
        for g in range(groups):
            sums, start, last = zeros(), last, min(last + per, chunks)
            for c in range(start, last):
                (v,) = one(at, high_at, bytes_at, taken_at, 0)
                sums = madd(v, power(powers, first + c), sums)
                at, high_at, bytes_at, taken_at = at + steps, high_at + high_steps, bytes_at + 2 * CHUNK, taken_at + 8
            y = madd(sums, load(scales, g * LANES), y)
        return y

    return row


_row_4, _row_5, _row_6, _row_8 = (_row(bits) for bits in (4, 5, 6, 8))


@inline
def _of_row(bits: int, at: int, high_at: int, x: Any, sizes: Any, scales: Any, y: Any) -> Any:
    if bits == 4:
        return _row_4(at, high_at, x, sizes, scales, y)
    if bits == 5:
        return _row_5(at, high_at, x, sizes, scales, y)
    if bits == 6:
        return _row_6(at, high_at, x, sizes, scales, y)
    return _row_8(at, high_at, x, sizes, scales, y)


@inline
def _taken_off(least: Any, sums: Any, at: int, groups: int) -> Any:
    """The sum of minima times the sums of x over their groups."""
    even, odd = zeros(), zeros()
    for g in range(0, groups - 1, 2):
        even = madd(load(least, g * LANES), splat(sums[at + g]), even)
        odd = madd(load(least, g * LANES + LANES), splat(sums[at + g + 1]), odd)
    if groups % 2:
        even = madd(load(least, (groups - 1) * LANES), splat(sums[at + groups - 1]), even)
    return even + odd


@parallel
def _multiply(x: Any, taken: Any, powers: Any, sums: Any, at: Any, form: Any, bias: Any, y: Any, wanted: Any) -> None:
    """y `[R, O]` by runs of tiles."""
    rows, outputs, chunks, runs = wanted
    bits, counts, kinds, group, steps, high_steps = form
    bytes_at, taken_at = x.ctypes.data, taken.ctypes.data
    groups, tiles = counts[0], -(-outputs // LANES)
    sizes = chunks, groups, group, steps, high_steps
    for each in prange(runs):
        run = np.int64(each)
        made, values = room(counts, chunks), aligned(LANES, np.float32)
        scales, less, _ = made
        for tile in range(run * tiles // runs, (run + 1) * tiles // runs):
            fill(at, kinds, tile, counts, made)
            for g in range(groups if at[4] else 0):
                store(less, g * LANES, load(less, g * LANES) * load(scales, g * LANES))
            w, high = at[0] + tile * chunks * steps, at[1] + tile * chunks * high_steps
            first = tile * LANES
            for r in range(rows):
                value = zeros() - _taken_off(less, sums, r * groups, groups if len(sums) else 0)
                of_x = bytes_at + r * chunks * 2 * CHUNK, taken_at + r * chunks * 8, powers, r * chunks
                value = _of_row(bits, w, high, of_x, sizes, scales, value)
                if first + LANES <= outputs:
                    store(y, r * outputs + first, value + load(bias, first) if len(bias) else value)
                    continue
                store(values, 0, value)
                for k in range(outputs - first):
                    of_bias = number(bias[first + k]) if len(bias) else np.float32(0)
                    y[r * outputs + first + k] = rounded(values[k] + of_bias, y)


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
def linear(x_at: int, at: Any, bias_at: int, y_at: int, sizes: Any, form: Any, x_like: Any) -> None:
    """y `[R, O]` of x `[R, I]` and the matrix `[O, I]` at `at`: addresses of its plane, of high bits, scales, factors,
    zeros, minima, their factors and a table, 0 for none. sizes are R, I and O; form is bits, the size of groups and of
    spans, the zero, the types of scales and of factors, and the bytes of a chunk of a tile in both planes."""
    (rows, inputs, outputs), (bits, group, span, zero, kind, factor_kind, steps, high_steps, _) = sizes, form
    chunks = -(-inputs // CHUNK)
    group, counts = grouping(group, span, inputs)
    x, y = split(array(x_at, rows * inputs, x_like), rows), array(y_at, rows * outputs, x_like)
    sums = _sums(x, rows, chunks, group, counts[0]) if at[4] or at[5] else np.empty(0, np.float32)
    taken = _taken(x[2], zero, group)
    bias = array(bias_at, outputs if bias_at else 0, x_like)
    runs = min(numba.get_num_threads(), -(-outputs // LANES))
    parts = bits, counts, (kind, factor_kind, NATURAL), group, steps, high_steps
    _multiply(x[0], taken, x[1], sums, at, parts, bias, y, (rows, outputs, chunks, runs))
