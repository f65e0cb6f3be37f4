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

from minillm.ops.cpu.loops.integers import _dot, _in_all
from minillm.ops.cpu.loops.jit import aligned, array, function, inline, kernel, parallel
from minillm.ops.cpu.loops.scales import NATURAL, fill, grouping, room
from minillm.ops.cpu.loops.vector import (
    BYTE,
    FLOAT,
    FLOATS,
    INT,
    LANES,
    ask_for,
    constant,
    floats,
    fused,
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

TOGETHER = 4  # rows of x for which numbers are unpacked once
AHEAD = 6144  # bytes before a chunk is read that it is asked for
UNIT, LOW_BYTES, HIGH_BYTES = 24, 64, 80  # where a table of fp32 goes on: its bytes in units of a fp32
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


def _looked_up(builder: Any, table: Any, offset: int, q: Any) -> Any:
    """The bytes that a table of 16 has for numbers."""
    sixteen, all_places = ir.VectorType(BYTE, LANES), ir.VectorType(BYTE, LINE)
    one = builder.load(_at(builder, table, offset, sixteen), align=1)
    four = builder.shuffle_vector(one, one, constant(INT, [n % LANES for n in range(LINE)]))
    kind = ir.FunctionType(all_places, [all_places, all_places])
    call = get_or_insert_function(builder.module, kind, "llvm.x86.avx512.pshuf.b.512")
    return builder.call(call, [four, builder.bitcast(q, all_places)])


def _multiplied(builder: Any, lines: Any, x: Any, taken: Any, steps: range) -> Any:
    """The sums over some steps of a chunk of numbers times n of x, less what is taken off, as floats."""
    low, high = _same_word(builder, taken, 0), same(INT, 0)
    for n in steps:
        high = _dot(builder, high, lines[n], _same_word(builder, x, 4 * n))
        low = _dot(builder, low, lines[n], _same_word(builder, x, CHUNK + 4 * n))
    return builder.sitofp(builder.add(builder.shl(high, same(INT, 8)), low), FLOATS)


def _multiplied_wide(builder: Any, lines: Any, x: Any, taken: Any, steps: range) -> Any:
    """The same of numbers of two bytes, whose sums have more bits than an int."""
    high, middle, low = same(INT, 0), _same_word(builder, taken, 0), same(INT, 0)
    for n in steps:
        (of_low, of_high), x_high, x_low = (
            lines[n],
            _same_word(builder, x, 4 * n),
            _same_word(builder, x, CHUNK + 4 * n),
        )
        high = _dot(builder, high, of_high, x_high)
        middle = _dot(builder, _dot(builder, middle, of_high, x_low), of_low, x_high)
        low = _dot(builder, low, of_low, x_low)
    above = builder.sitofp(builder.add(builder.shl(high, same(INT, 8)), middle), FLOATS)
    return fused(builder, above, same(FLOAT, 256.0), builder.sitofp(low, FLOATS))


def _products(builder: Any, bits: int, given: Any, rows: int, parts: int) -> Any:
    """Of each of R rows of x and each part of a chunk, the products with the chunk of W at an address, less powers."""
    at, high_at, table, x, taken, chunks = given
    lines = _of_chunk(builder, max(bits, 4), at, high_at)
    if bits == TABLE:
        lines = [_looked_up(builder, table, LOW_BYTES, q) for q in lines]
    if bits == WIDE_TABLE:
        lines = [[_looked_up(builder, table, offset, q) for offset in (LOW_BYTES, HIGH_BYTES)] for q in lines]
    multiplied, count = _multiplied_wide if bits == WIDE_TABLE else _multiplied, STEPS // parts
    for index in range(STEPS if bits == 8 else STEPS // 2):
        ask_for(builder, _at(builder, at, AHEAD + LINE * index, BYTE))
    for r in range(rows):
        further = builder.mul(chunks, chunks.type(r))
        of_x = builder.add(x, builder.mul(further, further.type(2 * CHUNK)))
        off = builder.add(taken, builder.mul(further, further.type(8)))
        yield [
            multiplied(builder, lines, of_x, builder.add(off, off.type(4 * p)), range(count * p, count * (p + 1)))
            for p in range(parts)
        ]


def _adding(bits: int, parts: int) -> Any:
    """What adds to sums, of R rows of x, the products of a chunk times their powers, and where each half of a chunk has
    scales of its own, times those."""

    @intrinsic
    def add(
        typing: Any, sums: Any, at: Any, high_at: Any, table: Any, x: Any, taken: Any, powers: Any, chunks: Any,
        first: Any, second: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            sums, at, high_at, table, x, taken, powers, chunks, *scales = given
            found, rows = [], len(signature.return_type)
            values = _products(builder, bits, (at, high_at, table, x, taken, chunks), rows, parts)
            for r, of_row in enumerate(values):
                value = of_row[0]
                if parts == 2:
                    value = fused(builder, of_row[1], scales[1], builder.fmul(value, scales[0]))
                place = builder.add(powers, builder.mul(chunks, chunks.type(4 * r)))
                power = builder.bitcast(_same_word(builder, place, 0), FLOATS)
                found.append(fused(builder, value, power, builder.extract_value(sums, r)))
            return context.make_tuple(builder, signature.return_type, found)

        places = [types.intp] * 7
        return sums(sums, *places, floats, floats), generate

    return add


@intrinsic
def _scaled(typing: Any, y: Any, sums: Any, scale: Any) -> Any:
    """y + sums * scale, each of R."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        y, sums, scale = given
        pairs = [[builder.extract_value(each, r) for each in (sums, y)] for r in range(len(signature.return_type))]
        found = [fused(builder, one, scale, other) for one, other in pairs]
        return context.make_tuple(builder, signature.return_type, found)

    return y(y, sums, scale), generate


@intrinsic
def _nothing(typing: Any, y: Any) -> Any:
    """Zeros, as many as in y."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return context.make_tuple(builder, signature.return_type, [same(FLOAT, 0.0)] * len(signature.return_type))

    return y(y), generate


def _rows(bits: int) -> Any:
    add, add_halves = _adding(bits, 1), _adding(bits, 2)

    @function
    def rows(w: Any, x: Any, sizes: Any, scales: Any, y: Any) -> Any:
        """y + a tile times R rows of x, its scales given."""
        (at, high_at, table), (bytes_at, taken, powers) = w, x
        chunks, groups, group, steps, high_steps = sizes
        halves, per, last = group == LANES, group // CHUNK, 0
        for c in range(chunks if halves else 0):
            s, t = load(scales, 2 * c * LANES), load(scales, (2 * c + 1) * LANES)
            y = add_halves(y, at, high_at, table, bytes_at, taken, powers, chunks, s, t)
            at, high_at, bytes_at = at + steps, high_at + high_steps, bytes_at + 2 * CHUNK
            taken, powers = taken + 8, powers + 4
        for g in range(0 if halves else groups):
            sums, start, last = _nothing(y), last, min(last + per, chunks)
            for _ in range(start, last):
                sums = add(sums, at, high_at, table, bytes_at, taken, powers, chunks, zeros(), zeros())
                at, high_at, bytes_at = at + steps, high_at + high_steps, bytes_at + 2 * CHUNK
                taken, powers = taken + 8, powers + 4
            y = _scaled(y, sums, load(scales, g * LANES))
        return y

    return rows


TABLE, WIDE_TABLE = 1, 2  # in place of bits: a table of as many bytes
_rows_4, _rows_5, _rows_6, _rows_8 = (_rows(bits) for bits in (4, 5, 6, 8))
_of_table, _of_wide_table = _rows(TABLE), _rows(WIDE_TABLE)


@inline
def _of_rows(bits: int, w: Any, x: Any, sizes: Any, scales: Any, y: Any) -> Any:
    if bits == 4:
        return _rows_4(w, x, sizes, scales, y)
    if bits == 5:
        return _rows_5(w, x, sizes, scales, y)
    if bits == 6:
        return _rows_6(w, x, sizes, scales, y)
    if bits == 8:
        return _rows_8(w, x, sizes, scales, y)
    if bits == TABLE:
        return _of_table(w, x, sizes, scales, y)
    return _of_wide_table(w, x, sizes, scales, y)


@inline
def _less(least: Any, sums: Any, r: int, groups: int) -> Any:
    """Minus the sum of minima times the sums of row r of x over their groups."""
    even, odd, at = zeros(), zeros(), r * groups
    for g in range(0, groups - 1, 2):
        even = madd(load(least, g * LANES), splat(sums[at + g]), even)
        odd = madd(load(least, g * LANES + LANES), splat(sums[at + g + 1]), odd)
    if groups % 2:
        even = madd(load(least, (groups - 1) * LANES), splat(sums[at + groups - 1]), even)
    return zeros() - (even + odd)


@inline
def _put(value: Any, y: Any, at: int, bias: Any, first: int, outputs: int, near: Any) -> None:
    """y[at:] = what a tile has for a row, less the rows that only fill the last tile up, plus bias."""
    if first + LANES <= outputs:
        store(y, at, value + load(bias, first) if len(bias) else value)
        return
    store(near, 0, value)
    for k in range(outputs - first):
        y[at + k] = rounded(near[k] + number(bias[first + k]) if len(bias) else near[k], y)


@parallel
def _multiply(
    x: Any, taken: Any, powers: Any, sums: Any, at: Any, form: Any, bias: Any, y: Any, wanted: Any
) -> None:  # fmt: skip
    """y `[R, O]` by runs of tiles."""
    rows, outputs, chunks, runs = wanted
    bits, counts, kinds, group, steps, high_steps = form
    x_at, taken_at, powers_at = x.ctypes.data, taken.ctypes.data, powers.ctypes.data
    groups, tiles = counts[0], -(-outputs // LANES)
    sizes, of_group = (chunks, groups, group, steps, high_steps), groups if len(sums) else 0
    for each in prange(runs):
        run = np.int64(each)
        made, near = room(counts, chunks), aligned(LANES, np.float32)
        scales, less, _ = made
        for tile in range(run * tiles // runs, (run + 1) * tiles // runs):
            fill(at, kinds, tile, counts, made)
            for g in range(groups if at[4] else 0):
                store(less, g * LANES, load(less, g * LANES) * load(scales, g * LANES))
            w = at[0] + tile * chunks * steps, at[1] + tile * chunks * high_steps, at[7]
            first, whole = tile * LANES, rows // TOGETHER * TOGETHER
            for r in range(0, whole, TOGETHER):
                of_x = x_at + r * chunks * 2 * CHUNK, taken_at + r * chunks * 8, powers_at + r * chunks * 4
                a, b = _less(less, sums, r, of_group), _less(less, sums, r + 1, of_group)
                c, d = _less(less, sums, r + 2, of_group), _less(less, sums, r + 3, of_group)
                a, b, c, d = _of_rows(bits, w, of_x, sizes, scales, (a, b, c, d))
                for k, value in enumerate((a, b, c, d)):
                    _put(value, y, (r + k) * outputs + first, bias, first, outputs, near)
            for r in range(whole, rows):
                of_x = x_at + r * chunks * 2 * CHUNK, taken_at + r * chunks * 8, powers_at + r * chunks * 4
                (value,) = _of_rows(bits, w, of_x, sizes, scales, (_less(less, sums, r, of_group),))
                _put(value, y, r * outputs + first, bias, first, outputs, near)


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
    taken, unit = _taken(x[2], zero, group), array(at[7], UNIT + 1 if at[7] else 0, np.empty(0, np.float32))
    for i in range(len(x[1]) if len(unit) else 0):
        x[1][i] *= unit[UNIT]
    bias = array(bias_at, outputs if bias_at else 0, x_like)
    runs = min(numba.get_num_threads(), -(-outputs // LANES))
    parts = bits, counts, (kind, factor_kind, NATURAL), group, steps, high_steps
    _multiply(x[0], taken, x[1], sums, at, parts, bias, y, (rows, outputs, chunks, runs))
