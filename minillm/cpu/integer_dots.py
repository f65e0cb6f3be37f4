"""Four rows of int8 or 4-bit weights times one row of x in blocks of whole numbers, as `integers.py` makes them.

What is loaded of x serves four rows: the loads of one row alone would take longer than its arithmetic. A row's sum is
the same, bit for bit, whichever three go with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.cpu.integers import BLOCK, HALF, as_floats, places, power, products, spread, times
from minillm.cpu.jit import inline
from minillm.cpu.vector import LANES, madd, total, zeros


@inline
def _int8_step(result: Any, w: Any, at: int, left: int, parts: Any, taken: Any, powers: Any, block: int) -> Any:
    n = products(w, at, left, parts, block * 2 * BLOCK, taken, block * LANES)
    return madd(as_floats(n), power(powers, block), result)


@inline
def dots_int8(m: Any, rows: Any, x: Any, r: int, count: int) -> Any:
    """Four rows of an int8 matrix, less their factors, times row r of x."""
    w, _, _, _, _ = m
    parts, taken, powers = x
    i, j, k, o = rows[0] * count, rows[1] * count, rows[2] * count, rows[3] * count
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    blocks = -(-count // BLOCK)
    for n in range(blocks):
        at, left, block = n * BLOCK, count - n * BLOCK, r * blocks + n
        a = _int8_step(a, w, i + at, left, parts, taken, powers, block)
        b = _int8_step(b, w, j + at, left, parts, taken, powers, block)
        c = _int8_step(c, w, k + at, left, parts, taken, powers, block)
        d = _int8_step(d, w, o + at, left, parts, taken, powers, block)
    return total(a), total(b), total(c), total(d)


@inline
def _int4_step(
    result: Any, w: Any, at: int, left: int, scale: Any, group: int, groups: int, of_places: Any, parts: Any,
    taken: Any, powers: Any, block: int,
) -> Any:  # fmt: skip
    n = products(w, at, left, parts, block * 2 * BLOCK, taken, block * LANES)
    scales = as_floats(spread(scale, group, groups, of_places))
    return madd(as_floats(n), scales * power(powers, block), result)


@inline
def _zero_step(
    result: Any, zero: Any, scale: Any, group: int, groups: int, of_places: Any, taken: Any, powers: Any, block: int
) -> Any:
    """What zero points other than 8 take off besides: `taken` has 8 times what one takes."""
    n = times(spread(zero, group, groups, of_places), taken, block * LANES)
    scales = as_floats(spread(scale, group, groups, of_places)) * np.float32(1 / 8)
    return madd(as_floats(n), scales * power(powers, block), result)


@inline
def dots_int4(m: Any, rows: Any, x: Any, r: int, count: int) -> Any:
    """Four rows of a 4-bit matrix, less their factors, times row r of x."""
    w, scale, zero, _, group = m
    parts, taken, powers = x
    shift = 1
    while 8 << shift < group:
        shift += 1
    each, beyond, of_places = max(16 >> shift, 1), max(shift - 4, 0), places(min(shift, 4))
    groups, blocks, size = (count + group - 1) >> (shift + 3), -(-count // BLOCK), (count + 1) // 2
    i, j, k, o = rows[0] * size, rows[1] * size, rows[2] * size, rows[3] * size
    e, f, g, h = rows[0] * groups, rows[1] * groups, rows[2] * groups, rows[3] * groups
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    for n in range(blocks):
        at, left, block, to = n * HALF, size - n * HALF, r * blocks + n, (n >> beyond) * each
        there = groups - to
        a = _int4_step(a, w, i + at, left, scale, e + to, there, of_places, parts, taken, powers, block)
        b = _int4_step(b, w, j + at, left, scale, f + to, there, of_places, parts, taken, powers, block)
        c = _int4_step(c, w, k + at, left, scale, g + to, there, of_places, parts, taken, powers, block)
        d = _int4_step(d, w, o + at, left, scale, h + to, there, of_places, parts, taken, powers, block)
    for n in range(blocks if len(zero) else 0):
        block, to = r * blocks + n, (n >> beyond) * each
        there = groups - to
        a = _zero_step(a, zero, scale, e + to, there, of_places, taken, powers, block)
        b = _zero_step(b, zero, scale, f + to, there, of_places, taken, powers, block)
        c = _zero_step(c, zero, scale, g + to, there, of_places, taken, powers, block)
        d = _zero_step(d, zero, scale, h + to, there, of_places, taken, powers, block)
    return total(a), total(b), total(c), total(d)
