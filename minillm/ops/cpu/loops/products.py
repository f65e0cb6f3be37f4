"""y = x Wᵀ + b for a few rows of x: as fast as the weights can be read.

A thread takes rows of W one after the other, so that it reads one long stretch of memory, and multiplies each with all
rows of x. A row's sums have the same order whatever the number of rows: a batch gives each row what it gives alone.

W is plain; `tiles/` has the products with matrices of few bits. Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from minillm.ops.cpu.loops.dots import NATIVE_BF16, dot32, prefetch
from minillm.ops.cpu.loops.jit import INLINE, OPTIONS, aligned, inline, overload
from minillm.ops.cpu.loops.vector import number, total, zeros

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


def read_once(w: Any, at: int, x: Any, start: int, count: int) -> Any:
    """`dot` with a row of a matrix that comes from memory."""
    raise NotImplementedError


@overload(read_once, jit_options=INLINE, strict=False)
def _read_once(w: Any, at: Any, x: Any, start: Any, count: Any) -> Any:
    if w.dtype != types.float32 and not NATIVE_BF16:
        return lambda w, at, x, start, count: streamed(w, at, x, start, count)
    return lambda w, at, x, start, count: dot(w, at, x, start, count)


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


def prepare(x: Any, w: Any) -> Any:
    """Rows of x, one behind the other, as `dot` with an array of w's type takes them."""
    raise NotImplementedError


@overload(prepare, jit_options=OPTIONS, strict=False)
def _prepare(x: Any, w: Any) -> Any:
    if x.dtype == types.float32 or (NATIVE_BF16 and w.dtype == x.dtype == types.uint16):
        return lambda x, w: x

    def convert(x: Any, w: Any) -> Any:
        made = aligned(len(x), np.float32)
        for i in range(len(x)):
            made[i] = number(x[i])
        return made

    return convert
