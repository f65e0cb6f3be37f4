"""y = x Wᵀ + b for a few rows of x: as fast as the weights can be read.

A thread takes rows of W one after the other, so that it reads one long stretch of memory, and multiplies each with all
rows of x. A row's sums have the same order whatever the number of rows: a batch gives each row what it gives alone.

W is plain, int8 with a scale for each row, or int4 with scales (and zeros) for groups of a row: the formats of
`reference.int8_linear` and `reference.int4_linear`. Shapes: R rows, I inputs, O outputs, G groups of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from minillm.cpu.dots import NATIVE_BF16, dot32, dot64
from minillm.cpu.jit import INLINE, OPTIONS, aligned, inline, overload
from minillm.cpu.vector import add, madd, number, splat, total, zeros

GROUP = 64  # a group of 4-bit numbers has so many, or twice, four times, … as many


@inline
def dot(w: Any, at: int, x: Any, start: int, count: int) -> Any:
    """The sum of w[at + i] x[start + i] over `count` places."""
    even, odd = zeros(), zeros()
    for i in range(0, count - 63, 64):
        even = dot32(even, w, at + i, x, start + i)
        odd = dot32(odd, w, at + i + 32, x, start + i + 32)
    done = count // 64 * 64
    if count - done >= 32:
        even = dot32(even, w, at + done, x, start + done)
    result = total(add(even, odd))
    for i in range(count // 32 * 32, count):
        result += number(w[at + i]) * number(x[start + i])
    return result


@inline
def tile(w: Any, at: int, x: Any, start: int, next_x: int, count: int) -> Any:
    """`dot` of each of four rows of w, from `at` on, with two of x: what is loaded once serves several times."""
    a, b, c, d = at, at + count, at + 2 * count, at + 3 * count
    a0, b0, c0, d0, e0, f0, g0, h0 = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    a1, b1, c1, d1, e1, f1, g1, h1 = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    for i in range(0, count - 63, 64):
        s, t, j, k = start + i, next_x + i, start + i + 32, next_x + i + 32
        a0, b0 = dot32(a0, w, a + i, x, s), dot32(b0, w, b + i, x, s)
        c0, d0 = dot32(c0, w, c + i, x, s), dot32(d0, w, d + i, x, s)
        e0, f0 = dot32(e0, w, a + i, x, t), dot32(f0, w, b + i, x, t)
        g0, h0 = dot32(g0, w, c + i, x, t), dot32(h0, w, d + i, x, t)
        a1, b1 = dot32(a1, w, a + i + 32, x, j), dot32(b1, w, b + i + 32, x, j)
        c1, d1 = dot32(c1, w, c + i + 32, x, j), dot32(d1, w, d + i + 32, x, j)
        e1, f1 = dot32(e1, w, a + i + 32, x, k), dot32(f1, w, b + i + 32, x, k)
        g1, h1 = dot32(g1, w, c + i + 32, x, k), dot32(h1, w, d + i + 32, x, k)
    return (
        (total(add(a0, a1)), total(add(b0, b1)), total(add(c0, c1)), total(add(d0, d1))),
        (total(add(e0, e1)), total(add(f0, f1)), total(add(g0, g1)), total(add(h0, h1))),
    )


@inline
def grouped_dot(
    w: Any, scale: Any, zero: Any, group: int, row: int, x: Any, start: int, sums: Any, at_sums: int, count: int
) -> Any:
    """The sum of scale (q - zero) x over a row of 4-bit numbers q; x and sums as `prepare` arranges them."""
    half, groups, at = count // 2, -(-count // group), row * ((count + 1) // 2)
    first, whole, blocks = row * groups, count // group, group // GROUP
    even, odd, shift = zeros(), zeros(), 0
    while 1 << shift < blocks:
        shift += 1
    for b in range(0, whole * blocks - 1, 2):  # two sums at a time, as in `dot`
        one = dot64(zeros(), w, at + 32 * b, x, start + 32 * b, half)
        two = dot64(zeros(), w, at + 32 * b + 32, x, start + 32 * b + 32, half)
        even = madd(one, splat(scale[first + (b >> shift)]), even)
        odd = madd(two, splat(scale[first + (b + 1 >> shift)]), odd)
    if whole * blocks % 2:
        b = whole * blocks - 1
        one = dot64(zeros(), w, at + 32 * b, x, start + 32 * b, half)
        even = madd(one, splat(scale[first + (b >> shift)]), even)
    rest = np.float32(0)
    for i in range(whole * group, count):
        q = np.int32((w[at + i // 2] >> (4 * (i % 2))) & 15) - 8
        place = i // 2 + i % 2 * half if i < 2 * half else i
        rest += np.float32(q) * number(x[start + place]) * scale[first + whole]
    for g in range(groups if len(zero) else 0):
        rest += scale[first + g] * (np.float32(8) - zero[first + g]) * sums[at_sums + g]
    return total(add(even, odd)) + rest


def prepare(x: Any, rows: int, w: Any, group: int) -> Any:
    """R rows of x, one behind the other, and the sums of their groups, as products with a W of w's type take them."""
    raise NotImplementedError


@overload(prepare, jit_options=OPTIONS, strict=False)
def _prepare(x: Any, rows: Any, w: Any, group: Any) -> Any:
    native = NATIVE_BF16 and x.dtype == types.uint16
    if w.dtype == types.uint8:
        kind = np.uint16 if native else np.float32

        def split(x: Any, rows: int, w: Any, group: int) -> Any:
            count = len(x) // rows
            half, groups = count // 2, -(-count // group)
            made, sums = aligned(len(x), kind), np.zeros(rows * groups, np.float32)
            for r in range(rows):
                at = r * count
                for i in range(half):
                    made[at + i] = x[at + 2 * i] if native else number(x[at + 2 * i])
                    made[at + half + i] = x[at + 2 * i + 1] if native else number(x[at + 2 * i + 1])
                if count % 2:
                    made[at + count - 1] = x[at + count - 1] if native else number(x[at + count - 1])
                for g in range(groups):
                    for i in range(at + g * group, at + min(g * group + group, count)):
                        sums[r * groups + g] += number(x[i])
            return made, sums

        return split
    if x.dtype == types.float32 or (native and w.dtype in (types.uint16, types.int8)):
        return lambda x, rows, w, group: (x, np.empty(0, np.float32))

    def convert(x: Any, rows: int, w: Any, group: int) -> Any:
        made = aligned(len(x), np.float32)
        for i in range(len(x)):
            made[i] = number(x[i])
        return made, np.empty(0, np.float32)

    return convert


def product(w: Any, scale: Any, zero: Any, group: int, row: int, x: Any, sums: Any, r: int, count: int) -> Any:
    """Row `row` of W times row r of a prepared x."""
    raise NotImplementedError


@overload(product, jit_options=INLINE, strict=False)
def _product(w: Any, scale: Any, zero: Any, group: Any, row: Any, x: Any, sums: Any, r: Any, count: Any) -> Any:
    if w.dtype == types.uint8:
        return lambda w, scale, zero, group, row, x, sums, r, count: grouped_dot(
            w, scale, zero, group, row, x, r * count, sums, r * -(-count // group), count
        )
    if w.dtype == types.int8:
        return lambda w, scale, zero, group, row, x, sums, r, count: (
            dot(w, row * count, x, r * count, count) * scale[row]
        )
    return lambda w, scale, zero, group, row, x, sums, r, count: dot(w, row * count, x, r * count, count)
