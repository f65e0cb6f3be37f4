"""The gated delta rule in which each row of a state decays at its own rate; `delta.py` has the rule with one rate.

Shapes: B batch, T positions, H heads, K and V values of their k and v.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.delta import COLUMNS, PIECE, UNROLLED, answered, back, copied, put, taken, unit, written
from minillm.ops.cpu.loops.jit import aligned, array, function, kernel, parallel
from minillm.ops.cpu.loops.pointwise import ONE, exp
from minillm.ops.cpu.loops.vector import LANES, load, number, store, zeros


@function
def _advance(s: Any, k: Any, worn: Any, kept: Any, q: Any, at: int, rows: int, v: Any, place: int, beta: Any) -> None:
    """One position for 32 columns of a state `[K, 32]`, of whose rows `kept` stays, `worn` being k times that: o takes
    the place of v."""
    x, y = answered(s, worn, at, rows)
    d0, d1 = (load(v, place) - x) * beta, (load(v, place + LANES) - y) * beta
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    for i in range(0, rows, 2):
        row, j = i * COLUMNS, at + i
        a, b = written(s, row, kept[j], k[j], q[j], d0, d1, a, b)
        c, d = written(s, row + COLUMNS, kept[j + 1], k[j + 1], q[j + 1], d0, d1, c, d)
    store(v, place, a + c)
    store(v, place + LANES, b + d)


@parallel
def _rule(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any, sizes: Any, o: Any, last: Any) -> None:
    batch, steps, heads, k_size, v_size, q_stride, k_stride, v_stride = sizes
    rows, scale = -(-k_size // UNROLLED) * UNROLLED, ONE / np.float32(math.sqrt(np.float32(k_size)))
    for each in prange(batch * heads):
        task = np.int64(each)
        b, h = task // heads, task % heads
        s, moving = aligned(rows * COLUMNS, np.float32), aligned(PIECE * COLUMNS, np.float32)
        k_unit, q_unit = aligned(PIECE * rows, np.float32), aligned(PIECE * rows, np.float32)
        worn, kept = aligned(PIECE * rows, np.float32), aligned(PIECE * rows, np.float32)
        for first in range(0, steps, PIECE):
            count = min(PIECE, steps - first)
            for i in range(count):
                t = b * steps + first + i
                unit(k, t * k_stride + h * k_size, k_size, ONE, k_unit, i * rows)
                unit(q, t * q_stride + h * k_size, k_size, scale, q_unit, i * rows)
                for j in range(rows):
                    kept[i * rows + j] = exp(g[(t * heads + h) * k_size + j]) if j < k_size else ONE
                    worn[i * rows + j] = kept[i * rows + j] * k_unit[i * rows + j]
            for column in range(0, v_size, COLUMNS):
                width, place = min(COLUMNS, v_size - column), task * k_size * v_size + column
                taken(last if first else state, place, k_size, v_size, width, s)
                for i in range(count):
                    t = b * steps + first + i
                    copied(v, t * v_stride + h * v_size + column, width, moving, i * COLUMNS)
                    share = number(beta[t * heads + h])
                    _advance(s, k_unit, worn, kept, q_unit, i * rows, rows, moving, i * COLUMNS, share)
                    back(moving, i * COLUMNS, width, o, (t * heads + h) * v_size + column)
                put(s, k_size, v_size, width, last, place)


@kernel
def channel_rule(at: Any, sizes: Any, like: Any) -> None:
    """o `[B, T, H, V]` and the last state. `at` are the addresses of q, k, v, g, beta, the state, o and the last state;
    sizes B, T, H, K, V, and the distances of two positions of q, k and v."""
    batch, steps, heads, k_size, v_size, q_stride, k_stride, v_stride = sizes
    count, floats, held = batch * steps, np.empty(0, np.float32), batch * heads * k_size * v_size
    q, k, v = (
        array(at[0], count * q_stride, like),
        array(at[1], count * k_stride, like),
        array(at[2], count * v_stride, like),
    )
    g, beta = array(at[3], count * heads * k_size, floats), array(at[4], count * heads, like)
    o = array(at[6], count * heads * v_size, like)
    _rule(q, k, v, g, beta, array(at[5], held, floats), sizes, o, array(at[7], held, floats))
