"""y = x Wᵀ + b for a few rows of x and a W of `weights/grouped.py` in tiles of 16 rows, which are the 16 places of a
vector: as fast as the numbers can be read.

A thread takes tiles one after the other, so that it reads one long stretch of memory. x goes through bytes (`whole.py`,
`dots.py`). Zeros of groups, like minima, are taken off with the sums of x over their groups; a zero that all have
the same, in whole numbers.

Shapes: R rows of x, T tiles, C chunks of 32 columns, G groups, S spans of a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.jit import array, array_of, function, inline, kernel, parallel, threads
from minillm.ops.cpu.loops.tiles.dots import multiply_rows
from minillm.ops.cpu.loops.tiles.scales import CODE, NATURAL, fill, fill_numbers, grouping, places, room
from minillm.ops.cpu.loops.tiles.whole import CHUNK, split, sum_of
from minillm.ops.cpu.loops.vector import LANES, ask_at, load, madd, number, rounded, splat, store, zeros

TOGETHER = 4  # rows of x for which numbers are unpacked once
LINE = 64  # bytes
UNIT = 24  # where the unit of a table in whole numbers lies, behind that of fp32 and its bytes


@function
def less_sums(made: Any, sums_at: int, r: int, groups: int) -> Any:
    """Minus the sum of minima times the sums of row r of x over their groups, of which there may be none."""
    least, sums = array_of(made[1], groups * LANES, np.float32), array_of(sums_at, (r + 1) * groups, np.float32)
    even, odd, at = zeros(), zeros(), r * groups
    for g in range(0, groups - 1, 2):
        even = madd(load(least, g * LANES), splat(sums[at + g]), even)
        odd = madd(load(least, g * LANES + LANES), splat(sums[at + g + 1]), odd)
    if groups % 2:
        even = madd(load(least, (groups - 1) * LANES), splat(sums[at + groups - 1]), even)
    return zeros() - (even + odd)


@inline
def put(value: Any, y: Any, at: int, bias: Any, first: int, outputs: int, made: Any, coded: bool) -> None:
    """y[at:] = what a tile has for a row, less the rows that only fill the last tile up, plus bias."""
    if coded:
        value = value * load(array_of(made[2], LANES, np.float32), 0)
    if first + LANES <= outputs:
        store(y, at, value + load(bias, first) if len(bias) else value)
        return
    near = array_of(made[3], LANES, np.float32)
    store(near, 0, value)
    for k in range(outputs - first):
        y[at + k] = rounded(near[k] + number(bias[first + k]) if len(bias) else near[k], y)


@function
def scaled(at: Any, kinds: Any, tile: int, counts: Any, made: Any) -> Any:
    """`fill`, and what zeros of groups take off, in place of them; the scales as `multiply_rows` takes them. Codes
    whose factor is that of a row are scales themselves: results are multiplied with it."""
    groups, _, per = counts
    size = groups * LANES
    scales, less = array_of(made[0], size, np.float32), array_of(made[1], size, np.float32)
    if kinds[0] == CODE and per == groups and at[3] and not at[5]:
        codes = array_of(at[2] + tile * size, size, np.int8)
        fill_numbers(at[3], kinds[1], tile, 1, made[2])
        if at[4]:
            fill_numbers(at[4], kinds[2], tile, groups, made[1])
        for i in range(0, size if at[4] else 0, LANES):
            store(less, i, load(less, i) * load(codes, i))
        for i in range(0, size, LINE):  # those of the next tile
            ask_at(at[2] + tile * size + size + i)
        return at[2] + tile * size, True
    fill(at, kinds, tile, counts, made)
    for i in range(0, size if at[4] else 0, LANES):
        store(less, i, load(less, i) * load(scales, i))
    return made[0], False


@inline
def of_tile(at: Any, tile: int, sizes: Any) -> Any:
    """Where a tile's planes and the table begin."""
    chunks, _, _, steps, high_steps = sizes
    return at[0] + tile * chunks * steps, at[1] + tile * chunks * high_steps, at[7]


@inline
def of_row(x: int, taken: int, powers: int, r: int, chunks: int) -> Any:
    """Where row r of x begins."""
    return x + r * chunks * 2 * CHUNK, taken + r * chunks * 8, powers + r * chunks * 4


@parallel
def _multiply(
    x: Any, taken: Any, powers: Any, sums: Any, at: Any, form: Any, bias: Any, memory: Any, y: Any, wanted: Any
) -> None:  # fmt: skip
    """y `[R, O]` by runs of tiles."""
    (rows, outputs, runs), (bits, counts, kinds, sizes) = wanted, form
    x_at, taken_at, powers_at, sums_at = x.ctypes.data, taken.ctypes.data, powers.ctypes.data, sums.ctypes.data
    memory_at = memory.ctypes.data
    tiles, groups, chunks = -(-outputs // LANES), counts[0] if len(sums) else 0, sizes[0]
    for each in prange(runs):
        run = np.int64(each)
        made = places(memory_at, run, counts, chunks)
        for tile in range(run * tiles // runs, (run + 1) * tiles // runs):
            scales = scaled(at, kinds, tile, counts, made)
            w, first, whole = of_tile(at, tile, sizes), tile * LANES, rows // TOGETHER * TOGETHER
            for r in range(0, whole, TOGETHER):
                of_x = of_row(x_at, taken_at, powers_at, r, chunks)
                a, b = less_sums(made, sums_at, r, groups), less_sums(made, sums_at, r + 1, groups)
                c, d = less_sums(made, sums_at, r + 2, groups), less_sums(made, sums_at, r + 3, groups)
                a, b, c, d = multiply_rows(bits, w, of_x, sizes, scales, (a, b, c, d))
                for k, value in enumerate((a, b, c, d)):
                    put(value, y, (r + k) * outputs + first, bias, first, outputs, made, scales[1])
            for r in range(whole, rows):
                of_x = of_row(x_at, taken_at, powers_at, r, chunks)
                (value,) = multiply_rows(bits, w, of_x, sizes, scales, (less_sums(made, sums_at, r, groups),))
                put(value, y, r * outputs + first, bias, first, outputs, made, scales[1])


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


@function
def prepared(x: Any, rows: int, at: Any, zero: int, group: int, groups: int) -> Any:
    """R rows of x as a product takes them: bytes, what a zero that all numbers have takes off, powers, and sums over
    groups where those have zeros or minima."""
    bytes_of_x, powers, of_halves = split(x, rows)
    sums = np.empty(0, np.float32)
    if at[4] or at[5]:
        sums = _sums((bytes_of_x, powers, of_halves), rows, len(powers) // rows, group, groups)
    unit = array(at[7], UNIT + 1 if at[7] else 0, sums)
    for i in range(len(powers) if len(unit) else 0):
        powers[i] *= unit[UNIT]
    return bytes_of_x, _taken(of_halves, zero, group), powers, sums


@kernel
def linear(x_at: int, at: Any, bias_at: int, y_at: int, sizes: Any, form: Any, like: Any) -> None:
    """y `[R, O]` of x `[R, I]` and the matrix `[O, I]` at `at`: addresses of its plane, of high bits, scales, factors,
    zeros, minima, their factors and a table, 0 for none. sizes are R, I and O; form is bits, the size of groups and of
    spans, the zero, the types of scales and of factors, the bytes of a chunk of a tile in both planes, and a type."""
    (rows, inputs, outputs), (bits, group, span, zero, kind, factor_kind, steps, high_steps, _) = sizes, form
    chunks, (group, counts) = -(-inputs // CHUNK), grouping(group, span, inputs)
    parts = bits, counts, (kind, factor_kind, NATURAL), (chunks, counts[0], group, steps, high_steps)
    x, taken, powers, sums = prepared(array(x_at, rows * inputs, like), rows, at, zero, group, counts[0])
    y, bias = array(y_at, rows * outputs, like), array(bias_at, outputs if bias_at else 0, like)
    wanted = rows, outputs, min(np.int64(threads()), -(-outputs // LANES))
    _multiply(x, taken, powers, sums, at, parts, bias, room(counts, chunks, wanted[2]), y, wanted)
