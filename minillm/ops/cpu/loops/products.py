"""y = x Wᵀ + b for a few rows of x: as fast as the weights can be read.

A thread takes rows of W one after the other, so that it reads one long stretch of memory, and multiplies each with all
rows of x. A row's sums have the same order whatever the number of rows: a batch gives each row what it gives alone.

W is plain, int8 with a factor for each row, or int4 with int8 scales (and zeros) for groups of a row besides: the
formats of `weights/ints.py`. Shapes: R rows, I inputs, O outputs, G groups of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from minillm.ops.cpu.loops import integers
from minillm.ops.cpu.loops.dots import NATIVE_BF16, STEP, dot32, dot_nibbles, spread_1, spread_2
from minillm.ops.cpu.loops.integer_dots import dot_int4, dot_int8
from minillm.ops.cpu.loops.integers import prefetch
from minillm.ops.cpu.loops.jit import INLINE, OPTIONS, aligned, array, inline, overload
from minillm.ops.cpu.loops.vector import madd, number, total, zeros

AHEAD = 4096  # numbers


@inline
def partial(w: Any, at: int, x: Any, start: int, count: int) -> Any:
    """The sum of w[at + i] x[start + i] over `count` places, of which a rest below 32 is left out, in 16 parts."""
    even, odd = zeros(), zeros()
    for i in range(0, count - 63, 64):
        even = dot32(even, w, at + i, x, start + i)
        odd = dot32(odd, w, at + i + 32, x, start + i + 32)
    done = count // 64 * 64
    if count - done >= 32:
        even = dot32(even, w, at + done, x, start + done)
    return even + odd


@inline
def dot(w: Any, at: int, x: Any, start: int, count: int) -> Any:
    """The sum of w[at + i] x[start + i] over `count` places."""
    result = total(partial(w, at, x, start, count))
    for i in range(count // 32 * 32, count):
        result += number(w[at + i]) * number(x[start + i])
    return result


@inline
def streamed(w: Any, at: int, x: Any, start: int, count: int) -> Any:
    """`dot` with a matrix of 16-bit numbers that comes from memory once: it asks for what lies 8 KiB further on, which
    nobody else foresees soon enough where each number has to be widened (18 GB/s without, 23 with; `torch.sum` 22)."""
    even, odd = zeros(), zeros()
    for i in range(0, count - 63, 64):
        prefetch(w, at + AHEAD + i)
        prefetch(w, at + AHEAD + i + 32)
        even = dot32(even, w, at + i, x, start + i)
        odd = dot32(odd, w, at + i + 32, x, start + i + 32)
    done = count // 64 * 64
    if count - done >= 32:
        even = dot32(even, w, at + done, x, start + done)
    result = total(even + odd)
    for i in range(count // 32 * 32, count):
        result += number(w[at + i]) * number(x[start + i])
    return result


@inline
def tile(w: Any, at: int, x: Any, start: int, next_x: int, count: int, ahead: Any) -> Any:
    """`dot` of each of four rows of w, from `at` on, with two of x: what is loaded once serves several times. Meanwhile
    it asks for rows ahead[0] to ahead[1] from there: four rows at a time are more streams than memory foresees."""
    a, b, c, d = at, at + count, at + 2 * count, at + 3 * count
    a0, b0, c0, d0, e0, f0, g0, h0 = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    a1, b1, c1, d1, e1, f1, g1, h1 = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    for i in range(0, count - 63, 64):
        for row in range(ahead[0], ahead[1]):
            prefetch(w, at + row * count + i)
            prefetch(w, at + row * count + i + 32)
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
        (total(a0 + a1), total(b0 + b1), total(c0 + c1), total(d0 + d1)),
        (total(e0 + e1), total(f0 + f1), total(g0 + g1), total(h0 + h1)),
    )


@inline
def _scales(scale: Any, first: int, step: int, shift: int) -> Any:
    """The factors of the groups that a step of `grouped_dot` takes, or of the one that it is a part of."""
    return spread_2(scale, first + 2 * step) if shift < 0 else spread_1(scale, first + (step >> shift))


@inline
def grouped_dot(m: Any, row: int, x: Any, r: int, count: int) -> Any:
    """The sum of s (q - z) x over a row of 4-bit numbers q and row r of x, as `prepare` arranges it."""
    w, scale, zero, _, group = m
    numbers, sums = x
    half, groups = count // 2, -(-count // group)
    at, first, start, shift = row * ((count + 1) // 2), row * groups, r * count, 0 if group >= STEP else -1
    while STEP << max(shift, 0) < group:
        shift += 1
    steps = count // max(group, STEP) * max(group, STEP) // STEP
    even, odd = zeros(), zeros()
    for i in range(0, steps - 1, 2):  # two sums at a time, as in `dot`
        byte, place = at + i * (STEP // 2), start + i * (STEP // 2)
        one = dot_nibbles(zeros(), w, byte, numbers, place, half)
        two = dot_nibbles(zeros(), w, byte + STEP // 2, numbers, place + STEP // 2, half)
        even = madd(one, _scales(scale, first, i, shift), even)
        odd = madd(two, _scales(scale, first, i + 1, shift), odd)
    if steps % 2:
        byte, place = at + (steps - 1) * (STEP // 2), start + (steps - 1) * (STEP // 2)
        one = dot_nibbles(zeros(), w, byte, numbers, place, half)
        even = madd(one, _scales(scale, first, steps - 1, shift), even)
    rest = np.float32(0)
    for i in range(steps * STEP, count):
        q = np.int32((w[at + i // 2] >> (4 * (i % 2))) & 15) - 8
        place = i // 2 + i % 2 * half if i < 2 * half else i
        rest += np.float32(q * scale[first + i // group]) * numbers[start + place]
    for g in range(groups if len(zero) else 0):
        rest += np.float32(scale[first + g] * (8 - np.int32(zero[first + g]))) * sums[r * groups + g]
    return total(even + odd) + rest


@inline
def matrix(at: Any, like: Any) -> Any:
    """W, its int8 scales, uint8 zeros and fp32 factors of rows, each given by its address and length, and the size of
    its groups."""
    scale, zero = array(at[2], at[3], np.empty(0, np.int8)), array(at[4], at[5], np.empty(0, np.uint8))
    return array(at[0], at[1], like), scale, zero, array(at[6], at[7], np.empty(0, np.float32)), at[8]


def prepare(x: Any, rows: int, m: Any) -> Any:
    """R rows of x, one behind the other, as `product` with a matrix takes them."""
    raise NotImplementedError


@overload(prepare, jit_options=OPTIONS, strict=False)
def _prepare(x: Any, rows: Any, m: Any) -> Any:
    kind = m[0].dtype
    if in_integers(x.dtype, kind):
        paired = kind == types.uint8
        return lambda x, rows, m: integers.split(x, rows, paired)
    if kind == types.uint8:
        return _halved
    if x.dtype == types.float32 or (NATIVE_BF16 and kind == x.dtype == types.uint16):
        return lambda x, rows, m: x

    def convert(x: Any, rows: int, m: Any) -> Any:
        made = aligned(len(x), np.float32)
        for i in range(len(x)):
            made[i] = number(x[i])
        return made

    return convert


def in_integers(x: Any, weights: Any) -> bool:
    """Whether x of a type goes through `integers.py`: quantised weights, and what 16 bits can say."""
    return integers.VNNI and x != types.float32 and weights in (types.int8, types.uint8)


def _halved(x: Any, rows: int, m: Any) -> Any:
    """The even columns of each row before its odd ones, and the sums of its groups where the matrix has zeros."""
    count, group = len(x) // rows, m[4]
    half, groups = count // 2, -(-count // group) if len(m[2]) else 0
    made, sums = aligned(len(x), np.float32), np.zeros(rows * groups, np.float32)
    for r in range(rows):
        at = r * count
        for i in range(half):
            made[at + i] = number(x[at + 2 * i])
            made[at + half + i] = number(x[at + 2 * i + 1])
        if count % 2:
            made[at + count - 1] = number(x[at + count - 1])
        for g in range(groups):
            for i in range(at + g * group, at + min(g * group + group, count)):
                sums[r * groups + g] += number(x[i])
    return made, sums


def product(m: Any, row: int, x: Any, r: int, count: int) -> Any:
    """Row `row` of a matrix times row r of a prepared x."""
    raise NotImplementedError


@overload(product, jit_options=INLINE, strict=False)
def _product(m: Any, row: Any, x: Any, r: Any, count: Any) -> Any:
    in_blocks = isinstance(x, types.BaseTuple) and len(x) == 3  # from `integers.split`
    if m[0].dtype == types.uint8:
        of_row = dot_int4 if in_blocks else grouped_dot
        return lambda m, row, x, r, count: of_row(m, row, x, r, count) * m[3][row]
    if m[0].dtype == types.int8:
        if in_blocks:
            return lambda m, row, x, r, count: dot_int8(m[0], row, x, r, count) * m[3][row]
        return lambda m, row, x, r, count: dot(m[0], row * count, x, r * count, count) * m[3][row]
    if m[0].dtype != types.float32 and not NATIVE_BF16:
        return lambda m, row, x, r, count: streamed(m[0], row * count, x, r * count, count)
    return lambda m, row, x, r, count: dot(m[0], row * count, x, r * count, count)
