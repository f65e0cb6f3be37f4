"""A row of int8 or 4-bit weights times a row of x in blocks of whole numbers, as `integers.py` makes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.ops.cpu.loops.integers import BLOCK, HALF, as_floats, places, power, prefetch, products, spread, times
from minillm.ops.cpu.loops.jit import inline
from minillm.ops.cpu.loops.vector import LANES, madd, total, zeros

AHEAD = 6144  # bytes before a row is read that it is asked for: 4-bit weights are read 10 to 25 % faster, int8 slower


@inline
def dot_int8(w: Any, row: int, x: Any, r: int, count: int) -> Any:
    """Row `row` of an int8 matrix, less its factor, times row r of x."""
    parts, taken, powers = x
    result, blocks = zeros(), -(-count // BLOCK)
    for b in range(blocks):
        at, block = b * BLOCK, r * blocks + b
        n = products(w, row * count + at, count - at, parts, block * 2 * BLOCK, taken, block * LANES)
        result = madd(as_floats(n), power(powers, block), result)
    return total(result)


@inline
def dot_int4(m: Any, row: int, x: Any, r: int, count: int) -> Any:
    """Row `row` of a 4-bit matrix, less its factor, times row r of x."""
    w, scale, zero, _, group = m
    parts, taken, powers = x
    shift = 1
    while 8 << shift < group:
        shift += 1
    of_block, beyond, of_places = max(16 >> shift, 1), max(shift - 4, 0), places(min(shift, 4))
    groups, blocks, size = (count + group - 1) >> (shift + 3), -(-count // BLOCK), (count + 1) // 2
    result = zeros()
    for b in range(blocks):
        at, block, g = b * HALF, r * blocks + b, (b >> beyond) * of_block
        prefetch(w, row * size + at + AHEAD)
        n = products(w, row * size + at, size - at, parts, block * 2 * BLOCK, taken, block * LANES)
        scales = as_floats(spread(scale, row * groups + g, groups - g, of_places))
        result = madd(as_floats(n), scales * power(powers, block), result)
    for b in range(blocks if len(zero) else 0):  # what zero points other than 8 take off besides, an eighth of 8 each
        block, g = r * blocks + b, (b >> beyond) * of_block
        n = times(spread(zero, row * groups + g, groups - g, of_places), taken, block * LANES)
        scales = as_floats(spread(scale, row * groups + g, groups - g, of_places)) * np.float32(1 / 8)
        result = madd(as_floats(n), scales * power(powers, block), result)
    return total(result)
