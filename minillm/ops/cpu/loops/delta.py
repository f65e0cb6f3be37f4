"""The gated delta rule over any number of positions.

The columns of a state do not depend on each other: 32 of them stay in the fastest cache from the first position to the
last, for a prompt as for one token. Chunks (`ops/recurrent.py`) would be products of matrices, but of twice as many
operations, and their results other ones than those of a step.

Shapes: B batch, T positions, H v heads, H' k heads, K and V values of their k and v.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.jit import aligned, array, function, inline, kernel, parallel
from minillm.ops.cpu.loops.pointwise import ONE, exp
from minillm.ops.cpu.loops.vector import LANES, load, madd, number, rounded, splat, store, total, zeros

EPS = np.float32(1e-6)  # `ops/recurrent.py` EPS
COLUMNS = 2 * LANES  # of a state at a time
UNROLLED = 4  # rows of it, without which each sum would wait for the one before
PIECE = 32  # positions whose q and k lie ready


@function
def unit(x: Any, at: int, size: int, scale: Any, y: Any, to: int) -> None:
    """x[at : at + size] at length `scale` into y, which goes on with zeros up to a multiple of 4."""
    squares, whole = zeros(), size // LANES * LANES
    for i in range(at, at + whole, LANES):
        squares = madd(load(x, i), load(x, i), squares)
    length = total(squares)
    for i in range(at + whole, at + size):
        length += number(x[i]) * number(x[i])
    factor = scale / np.float32(math.sqrt(length + EPS))
    for i in range(0, whole, LANES):
        store(y, to + i, load(x, at + i) * factor)
    for i in range(whole, size):
        y[to + i] = number(x[at + i]) * factor
    for i in range(size, -(-size // UNROLLED) * UNROLLED):
        y[to + i] = np.float32(0)


@inline
def copied(x: Any, at: int, count: int, y: Any, to: int) -> None:
    """32 numbers, of which only `count` are there and the others 0."""
    if count == COLUMNS:
        store(y, to, load(x, at))
        store(y, to + LANES, load(x, at + LANES))
    else:
        for i in range(COLUMNS):
            y[to + i] = number(x[at + i]) if i < count else np.float32(0)


@inline
def back(x: Any, at: int, count: int, y: Any, to: int) -> None:
    """The first `count` of 32 numbers."""
    if count == COLUMNS:
        store(y, to, load(x, at))
        store(y, to + LANES, load(x, at + LANES))
    else:
        for i in range(count):
            y[to + i] = rounded(x[at + i], y)


@inline
def answered(s: Any, k: Any, at: int, rows: int) -> Any:
    """Sᵀ k of 32 columns."""
    a, b, c, d, e, f, g, h = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    for i in range(0, rows, UNROLLED):
        row = i * COLUMNS
        x, y, z, w = splat(k[at + i]), splat(k[at + i + 1]), splat(k[at + i + 2]), splat(k[at + i + 3])
        a, b = madd(load(s, row), x, a), madd(load(s, row + LANES), x, b)
        c, d = madd(load(s, row + COLUMNS), y, c), madd(load(s, row + COLUMNS + LANES), y, d)
        e, f = madd(load(s, row + 2 * COLUMNS), z, e), madd(load(s, row + 2 * COLUMNS + LANES), z, f)
        g, h = madd(load(s, row + 3 * COLUMNS), w, g), madd(load(s, row + 3 * COLUMNS + LANES), w, h)
    return (a + c) + (e + g), (b + d) + (f + h)


@inline
def written(s: Any, row: int, decay: Any, k: Any, q: Any, d0: Any, d1: Any, o0: Any, o1: Any) -> Any:
    """One row of the state forgets and takes up, and is added to what q asks for."""
    one = madd(d0, splat(k), load(s, row) * decay)
    two = madd(d1, splat(k), load(s, row + LANES) * decay)
    store(s, row, one)
    store(s, row + LANES, two)
    return madd(one, splat(q), o0), madd(two, splat(q), o1)


@function
def advance(s: Any, k: Any, q: Any, at: int, rows: int, v: Any, place: int, decay: Any, beta: Any) -> None:
    """One position for 32 columns of a state `[K, 32]`: o takes the place of v."""
    x, y = answered(s, k, at, rows)
    d0, d1 = (load(v, place) - x * decay) * beta, (load(v, place + LANES) - y * decay) * beta
    a, b, c, d, e, f, g, h = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    for i in range(0, rows, UNROLLED):
        row, j = i * COLUMNS, at + i
        a, b = written(s, row, decay, k[j], q[j], d0, d1, a, b)
        c, d = written(s, row + COLUMNS, decay, k[j + 1], q[j + 1], d0, d1, c, d)
        e, f = written(s, row + 2 * COLUMNS, decay, k[j + 2], q[j + 2], d0, d1, e, f)
        g, h = written(s, row + 3 * COLUMNS, decay, k[j + 3], q[j + 3], d0, d1, g, h)
    store(v, place, (a + c) + (e + g))
    store(v, place + LANES, (b + d) + (f + h))


@inline
def taken(state: Any, at: int, k_size: int, v_size: int, count: int, s: Any) -> None:
    """32 columns of a state, with rows of zeros up to a multiple of 4."""
    for i in range(k_size):
        copied(state, at + i * v_size, count, s, i * COLUMNS)
    for i in range(k_size * COLUMNS, -(-k_size // UNROLLED) * UNROLLED * COLUMNS):
        s[i] = np.float32(0)


@inline
def put(s: Any, k_size: int, v_size: int, count: int, state: Any, at: int) -> None:
    for i in range(k_size):
        back(s, i * COLUMNS, count, state, at + i * v_size)


@parallel
def _rule(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any, sizes: Any, o: Any, last: Any) -> None:
    batch, steps, k_heads, heads, k_size, v_size, q_stride, k_stride, v_stride = sizes
    rows, scale = -(-k_size // UNROLLED) * UNROLLED, ONE / np.float32(math.sqrt(np.float32(k_size)))
    for each in prange(batch * heads):
        task = np.int64(each)
        b, h = task // heads, task % heads
        s, moving = aligned(rows * COLUMNS, np.float32), aligned(PIECE * COLUMNS, np.float32)
        k_unit, q_unit = aligned(PIECE * rows, np.float32), aligned(PIECE * rows, np.float32)
        of_k = h // (heads // k_heads) * k_size
        for first in range(0, steps, PIECE):
            count = min(PIECE, steps - first)
            for i in range(count):
                t = b * steps + first + i
                unit(k, t * k_stride + of_k, k_size, ONE, k_unit, i * rows)
                unit(q, t * q_stride + of_k, k_size, scale, q_unit, i * rows)
            for column in range(0, v_size, COLUMNS):
                width, place = min(COLUMNS, v_size - column), task * k_size * v_size + column
                taken(last if first else state, place, k_size, v_size, width, s)
                for i in range(count):
                    t = b * steps + first + i
                    copied(v, t * v_stride + h * v_size + column, width, moving, i * COLUMNS)
                    decay, share = exp(g[t * heads + h]), number(beta[t * heads + h])
                    advance(s, k_unit, q_unit, i * rows, rows, moving, i * COLUMNS, decay, share)
                    back(moving, i * COLUMNS, width, o, (t * heads + h) * v_size + column)
                put(s, k_size, v_size, width, last, place)


@kernel
def delta_rule(at: Any, sizes: Any, like: Any) -> None:
    """o `[B, T, H, V]` and the last state. `at` are the addresses of q, k, v, g, beta, the state, o and the last state;
    sizes B, T, H', H, K, V, and the distances of two positions of q, k and v."""
    batch, steps, _, heads, k_size, v_size, q_stride, k_stride, v_stride = sizes
    count, floats, held = batch * steps, np.empty(0, np.float32), batch * heads * k_size * v_size
    q, k, v = (
        array(at[0], count * q_stride, like),
        array(at[1], count * k_stride, like),
        array(at[2], count * v_stride, like),
    )
    g, beta = array(at[3], count * heads, floats), array(at[4], count * heads, like)
    o = array(at[6], count * heads * v_size, like)
    _rule(q, k, v, g, beta, array(at[5], held, floats), sizes, o, array(at[7], held, floats))
