"""Tiles of 16 rows of few bits times rows of x in fp32, in the 16 places of a vector: for an x of fp32, and where the
processor does not multiply bytes. As `dots.py`, but each number becomes a float and meets one of x in all places.

    y[o] += s[o, g] sum over the inputs of a group of (q[o, i] - z[o, g]) x[i]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types

from minillm.ops.cpu.loops.jit import aligned, array_of, function, inline, parallel
from minillm.ops.cpu.loops.tiles.dots import AHEAD, LINE, STEPS, at_place, nothing, of_chunk, scaled_sums
from minillm.ops.cpu.loops.tiles.products import TOGETHER, put
from minillm.ops.cpu.loops.tiles.scales import fill, places
from minillm.ops.cpu.loops.tiles.whole import CHUNK
from minillm.ops.cpu.loops.vector import (
    BYTE,
    FLOAT,
    FLOATS,
    INT,
    LANES,
    ask_for,
    floats,
    fused,
    intrinsic,
    load,
    number,
    same,
    splat,
    zeros,
)

INPUTS = 4  # of a step
LINES = {4: STEPS // 2, 5: STEPS // 2, 6: STEPS // 2, 8: STEPS}  # of a chunk


def _adding(bits: int, first: int, last: int) -> Any:
    """What adds to sums, of R rows of x, the products of some steps of a chunk, less zeros."""

    @intrinsic
    def add(typing: Any, sums: Any, at: Any, high_at: Any, x: Any, stride: Any, zero: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            sums, at, high_at, x, stride, zero = given
            found = [same(FLOAT, 0.0)] * len(signature.return_type)  # long sums of short ones round less
            lines = of_chunk(builder, bits, at, high_at)
            for index in range(LINES[bits] if first == 0 else 0):
                ask_for(builder, at_place(builder, at, AHEAD + LINE * index, BYTE))
            for n in range(first, last):
                for k in range(INPUTS):
                    q = builder.and_(builder.lshr(lines[n], same(INT, 8 * k)), same(INT, 255))
                    value = builder.fsub(builder.sitofp(q, FLOATS), zero)
                    for r in range(len(found)):
                        row = builder.add(x, builder.mul(stride, stride.type(r)))
                        one = builder.load(at_place(builder, row, 4 * (INPUTS * n + k), FLOAT), align=4)
                        alone = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), one, INT(0))
                        found[r] = fused(builder, value, builder.shuffle_vector(alone, alone, same(INT, 0)), found[r])
            found = [builder.fadd(builder.extract_value(sums, r), each) for r, each in enumerate(found)]
            return context.make_tuple(builder, signature.return_type, found)

        return sums(sums, *[types.intp] * 4, floats), generate

    return add


def _rows(bits: int) -> Any:
    add, add_first, add_second = (_adding(bits, *part) for part in ((0, STEPS), (0, STEPS // 2), (STEPS // 2, STEPS)))

    @function
    def rows(w: Any, x: int, sizes: Any, made: Any, zero: Any, y: Any) -> Any:
        """y + a tile times R rows of x, its scales and zeros of groups given."""
        (at, high_at), (chunks, groups, group, steps, high_steps), (of_zero, zeros_of_groups) = w, sizes, zero
        size = groups * LANES
        scales, less = array_of(made[0], size, np.float32), array_of(made[1], size, np.float32)
        halves, per, last, stride = group == LANES, group // CHUNK, 0, 4 * chunks * CHUNK
        for g in range(groups):
            off = load(less, g * LANES) if zeros_of_groups else splat(np.float32(of_zero))
            sums, start, last = nothing(y), last, min(last + per, chunks)
            if halves and g % 2 == 0:
                sums = add_first(sums, at, high_at, x, stride, off)
            elif halves:
                sums = add_second(sums, at, high_at, x, stride, off)
                at, high_at, x = at + steps, high_at + high_steps, x + 4 * CHUNK
            for _ in range(start, last):
                sums = add(sums, at, high_at, x, stride, off)
                at, high_at, x = at + steps, high_at + high_steps, x + 4 * CHUNK
            y = scaled_sums(y, sums, load(scales, g * LANES))
        return y

    return rows


_rows_4, _rows_5, _rows_6, _rows_8 = (_rows(bits) for bits in (4, 5, 6, 8))


@function
def multiply_rows(bits: int, w: Any, x: int, sizes: Any, made: Any, zero: Any, y: Any) -> Any:
    """y + a tile times R rows of x, each a vector: w and x are addresses, rows of x filled up with zeros to C chunks;
    sizes as in `dots.py`; `made` has the addresses of scales and of zeros; zero is that of all numbers, and whether
    groups have their own."""
    if bits == 4:
        return _rows_4(w, x, sizes, made, zero, y)
    if bits == 5:
        return _rows_5(w, x, sizes, made, zero, y)
    if bits == 6:
        return _rows_6(w, x, sizes, made, zero, y)
    return _rows_8(w, x, sizes, made, zero, y)


@inline
def takes(at: Any, rounded: int) -> bool:
    """Whether a form is one of those that go through here: with no table, no minima, and not rounded."""
    return at[5] == 0 and at[7] == 0 and rounded < 0


@function
def widened_rows(x: Any, rows: int, chunks: int) -> Any:
    """R rows of x as fp32, filled up with zeros to whole chunks."""
    made, inputs, width = aligned(rows * chunks * CHUNK, np.float32), len(x) // rows, chunks * CHUNK
    for r in range(rows):
        for i in range(inputs):
            made[r * width + i] = number(x[r * inputs + i])
        for i in range(inputs, width):
            made[r * width + i] = 0
    return made


@inline
def _tile(at: Any, form: Any, counts: Any, tile: int) -> Any:
    """Where a tile's planes begin, the sizes of its rows, and its zeros, as `multiply_rows` takes them."""
    _, group, zero, chunks, steps, high_steps, _ = form
    w = at[0] + tile * chunks * steps, at[1] + tile * chunks * high_steps
    return w, (chunks, counts[0], group, steps, high_steps), (zero, at[4] != 0)


@parallel
def multiply(at: Any, form: Any, counts: Any, kinds: Any, wanted: Any, x: Any, bias: Any, memory: Any, y: Any) -> None:
    """y `[R, O]` by runs of tiles."""
    (rows, outputs, runs), chunks = wanted, form[3]
    tiles, memory_at, x_at = -(-outputs // LANES), memory.ctypes.data, x.ctypes.data
    for each in prange(runs):
        run = np.int64(each)
        made = places(memory_at, run, counts, chunks)
        for tile in range(run * tiles // runs, (run + 1) * tiles // runs):
            fill(at, kinds, tile, counts, made)
            (w, sizes, zero), first, whole = _tile(at, form, counts, tile), tile * LANES, rows // TOGETHER * TOGETHER
            for r in range(0, whole, TOGETHER):
                none = (zeros(), zeros(), zeros(), zeros())
                found = multiply_rows(form[0], w, x_at + 4 * r * chunks * CHUNK, sizes, made, zero, none)
                for k, value in enumerate(found):
                    put(value, y, (r + k) * outputs + first, bias, first, outputs, made, False)
            for r in range(whole, rows):
                (value,) = multiply_rows(form[0], w, x_at + 4 * r * chunks * CHUNK, sizes, made, zero, (zeros(),))
                put(value, y, r * outputs + first, bias, first, outputs, made, False)


@parallel
def multiply_picked(
    at: Any, form: Any, counts: Any, kinds: Any, wanted: Any, x: Any, picks: Any, memory: Any, y: Any
) -> None:  # fmt: skip
    """y fp32 `[P, O]`: for pick p matrix picks[p] times row p // top_k of x."""
    (top_k, outputs, runs), chunks = wanted, form[3]
    tiles, memory_at, x_at = -(-outputs // LANES), memory.ctypes.data, x.ctypes.data
    count = len(picks) * tiles
    for each in prange(runs):
        run, no_bias = np.int64(each), array_of(memory_at, 0, np.float32)
        made = places(memory_at, run, counts, chunks)
        for item in range(run * count // runs, (run + 1) * count // runs):
            p, place = item // tiles, item % tiles
            tile, first = picks[p] * tiles + place, place * LANES
            fill(at, kinds, tile, counts, made)
            w, sizes, zero = _tile(at, form, counts, tile)
            of_x = x_at + 4 * (p // top_k) * chunks * CHUNK
            (value,) = multiply_rows(form[0], w, of_x, sizes, made, zero, (zeros(),))
            put(value, y, p * outputs + first, no_bias, first, outputs, made, False)
