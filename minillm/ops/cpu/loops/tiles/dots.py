"""Tiles of 16 rows of few bits times rows of x in bytes: the sums of products of a chunk of 32 columns, and of all, in
the 16 places of a vector.

Four bytes of x go to all places and are multiplied with four numbers of each row by one instruction. Tables of whole
numbers are looked up as bytes, one or two for each number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function

from minillm.ops.cpu.loops.jit import array_of, function, inline
from minillm.ops.cpu.loops.tiles.whole import CHUNK, INTS
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
    same,
    zeros,
)

AHEAD = 6144  # bytes before a chunk is read that it is asked for
STEPS = 8  # of a chunk: each takes four inputs of each row
LINE = 64  # bytes of a step: four numbers, or twice four, of each row
TABLE, WIDE_TABLE = 1, 2  # in place of bits: a table of as many bytes
LOW_BYTES, HIGH_BYTES = 64, 80  # where those of a table lie, behind 16 fp32


def _dot(builder: Any, total: Any, w: Any, x: Any) -> Any:
    """total[l] + w[4 l] x[4 l] + … + w[4 l + 3] x[4 l + 3], w without a sign, x with one."""
    kind = ir.FunctionType(INTS, [INTS, INTS, INTS])
    call = get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
    return builder.call(call, [total, builder.bitcast(w, INTS), builder.bitcast(x, INTS)])


def at_place(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    """The pointer to what lies `offset` bytes behind an address."""
    return builder.inttoptr(builder.add(address, address.type(offset)), kind.as_pointer())


def _line(builder: Any, address: Any, index: int) -> Any:
    """The line so many lines behind an address."""
    return builder.load(at_place(builder, address, LINE * index, INTS), align=1)


def same_word(builder: Any, address: Any, offset: int) -> Any:
    """Four bytes in all 16 places."""
    word = builder.load(at_place(builder, address, offset, INT), align=1)
    one = builder.insert_element(ir.Constant(INTS, ir.Undefined), word, INT(0))
    return builder.shuffle_vector(one, one, same(INT, 0))


def of_chunk(builder: Any, bits: int, at: Any, high_at: Any) -> Any:
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


def looked_up(builder: Any, table: Any, offset: int, q: Any) -> Any:
    """The bytes that a table of 16 has for numbers."""
    sixteen, all_places = ir.VectorType(BYTE, LANES), ir.VectorType(BYTE, LINE)
    one = builder.load(at_place(builder, table, offset, sixteen), align=1)
    four = builder.shuffle_vector(one, one, constant(INT, [n % LANES for n in range(LINE)]))
    kind = ir.FunctionType(all_places, [all_places, all_places])
    call = get_or_insert_function(builder.module, kind, "llvm.x86.avx512.pshuf.b.512")
    return builder.call(call, [four, builder.bitcast(q, all_places)])


def _multiplied(builder: Any, lines: Any, x: Any, taken: Any, steps: range) -> Any:
    """The sums over some steps of a chunk of numbers times n of x, less what is taken off, as floats."""
    low, high = same_word(builder, taken, 0), same(INT, 0)
    for n in steps:
        high = _dot(builder, high, lines[n], same_word(builder, x, 4 * n))
        low = _dot(builder, low, lines[n], same_word(builder, x, CHUNK + 4 * n))
    return builder.sitofp(builder.add(builder.shl(high, same(INT, 8)), low), FLOATS)


def _multiplied_wide(builder: Any, lines: Any, x: Any, taken: Any, steps: range) -> Any:
    """The same of numbers of two bytes, whose sums have more bits than an int."""
    high, middle, low = same(INT, 0), same_word(builder, taken, 0), same(INT, 0)
    for n in steps:
        (of_low, of_high), x_high, x_low = (
            lines[n],
            same_word(builder, x, 4 * n),
            same_word(builder, x, CHUNK + 4 * n),
        )
        high = _dot(builder, high, of_high, x_high)
        middle = _dot(builder, _dot(builder, middle, of_high, x_low), of_low, x_high)
        low = _dot(builder, low, of_low, x_low)
    above = builder.sitofp(builder.add(builder.shl(high, same(INT, 8)), middle), FLOATS)
    return fused(builder, above, same(FLOAT, 256.0), builder.sitofp(low, FLOATS))


def _products(builder: Any, bits: int, given: Any, rows: int, parts: int) -> Iterator[Any]:
    """Of each of R rows of x and each part of a chunk, the products with the chunk of W at an address, less powers."""
    at, high_at, table, x, taken, chunks = given
    lines = of_chunk(builder, max(bits, 4), at, high_at)
    if bits == TABLE:
        lines = [looked_up(builder, table, LOW_BYTES, q) for q in lines]
    if bits == WIDE_TABLE:
        lines = [[looked_up(builder, table, offset, q) for offset in (LOW_BYTES, HIGH_BYTES)] for q in lines]
    multiplied, count = _multiplied_wide if bits == WIDE_TABLE else _multiplied, STEPS // parts
    for index in range(STEPS if bits == 8 else STEPS // 2):
        ask_for(builder, at_place(builder, at, AHEAD + LINE * index, BYTE))
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
                power = builder.bitcast(same_word(builder, place, 0), FLOATS)
                found.append(fused(builder, value, power, builder.extract_value(sums, r)))
            return context.make_tuple(builder, signature.return_type, found)

        places = [types.intp] * 7
        return sums(sums, *places, floats, floats), generate

    return add


@intrinsic
def scaled_sums(typing: Any, y: Any, sums: Any, scale: Any) -> Any:
    """y + sums * scale, each of R."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        y, sums, scale = given
        pairs = [[builder.extract_value(each, r) for each in (sums, y)] for r in range(len(signature.return_type))]
        found = [fused(builder, one, scale, other) for one, other in pairs]
        return context.make_tuple(builder, signature.return_type, found)

    return y(y, sums, scale), generate


@intrinsic
def nothing(typing: Any, y: Any) -> Any:
    """Zeros, as many as in y."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return context.make_tuple(builder, signature.return_type, [same(FLOAT, 0.0)] * len(signature.return_type))

    return y(y), generate


@inline
def _scale(at: int, coded: bool, g: int) -> Any:
    """The scales of group g of a tile."""
    if coded:
        return load(array_of(at, (g + 1) * LANES, np.int8), g * LANES)
    return load(array_of(at, (g + 1) * LANES, np.float32), g * LANES)


def _rows(bits: int) -> Any:
    add, add_halves = _adding(bits, 1), _adding(bits, 2)

    @function
    def rows(w: Any, x: Any, sizes: Any, scales: Any, y: Any) -> Any:
        """y + a tile times R rows of x, its scales given."""
        (at, high_at, table), (bytes_at, taken, powers), (scales_at, coded) = w, x, scales
        chunks, groups, group, steps, high_steps = sizes
        halves, per, last = group == LANES, group // CHUNK, 0
        for c in range(chunks if halves else 0):
            s = _scale(scales_at, coded, 2 * c)
            t = _scale(scales_at, coded, min(2 * c + 1, groups - 1))  # of a half that the row has not, x is zeros
            y = add_halves(y, at, high_at, table, bytes_at, taken, powers, chunks, s, t)
            at, high_at, bytes_at = at + steps, high_at + high_steps, bytes_at + 2 * CHUNK
            taken, powers = taken + 8, powers + 4
        for g in range(0 if halves else groups):
            sums, start, last = nothing(y), last, min(last + per, chunks)
            for _ in range(start, last):
                sums = add(sums, at, high_at, table, bytes_at, taken, powers, chunks, zeros(), zeros())
                at, high_at, bytes_at = at + steps, high_at + high_steps, bytes_at + 2 * CHUNK
                taken, powers = taken + 8, powers + 4
            y = scaled_sums(y, sums, _scale(scales_at, coded, g))
        return y

    return rows


_rows_4, _rows_5, _rows_6, _rows_8 = (_rows(bits) for bits in (4, 5, 6, 8))
_of_table, _of_wide_table = _rows(TABLE), _rows(WIDE_TABLE)


@function
def multiply_rows(bits: int, w: Any, x: Any, sizes: Any, scales: Any, y: Any) -> Any:
    """y + a tile times R rows of x, each a vector: w and x are addresses, scales one and whether int8 codes lie there
    and not floats, sizes C, G, the size of a group and the bytes of a chunk in both planes."""
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
