"""Recurrent layers: the gated delta rule over any number of positions, and a whole layer for a single one.

The columns of a state do not depend on each other: 32 of them stay in the fastest cache from the first position to the
last, for a prompt as for one token. Chunks (`ops/recurrent.py`) would be products of matrices, but of twice as many
operations, and their results other ones than those of a step.

Shapes: B batch, T positions, H v heads, H' k heads, K and V values of their k and v, C channels, J taps of a filter.
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
FLAT = np.float32(20)  # from here on softplus(x) is x
AT_ONCE = 4 * LANES  # channels that are one task


@inline
def _silu(x: Any) -> Any:
    return x / (ONE + exp(x * -ONE))


@function
def _unit(x: Any, at: int, size: int, scale: Any, y: Any, to: int) -> None:
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


@function
def _copied(x: Any, at: int, count: int, y: Any, to: int) -> None:
    """32 numbers, of which only `count` are there and the others 0."""
    if count == COLUMNS:
        store(y, to, load(x, at))
        store(y, to + LANES, load(x, at + LANES))
        return
    for i in range(COLUMNS):
        y[to + i] = number(x[at + i]) if i < count else np.float32(0)


@inline
def _answered(s: Any, k: Any, at: int, rows: int) -> Any:
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
def _written(s: Any, row: int, decay: Any, k: Any, q: Any, d0: Any, d1: Any, o0: Any, o1: Any) -> Any:
    """One row of the state forgets and takes up, and is added to what q asks for."""
    one = madd(d0, splat(k), load(s, row) * decay)
    two = madd(d1, splat(k), load(s, row + LANES) * decay)
    store(s, row, one)
    store(s, row + LANES, two)
    return madd(one, splat(q), o0), madd(two, splat(q), o1)


@function
def _position(s: Any, k: Any, q: Any, at: int, rows: int, v: Any, place: int, decay: Any, beta: Any) -> None:
    """One position for 32 columns of a state `[K, 32]`: o takes the place of v."""
    x, y = _answered(s, k, at, rows)
    d0, d1 = (load(v, place) - x * decay) * beta, (load(v, place + LANES) - y * decay) * beta
    a, b, c, d, e, f, g, h = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    for i in range(0, rows, UNROLLED):
        row, j = i * COLUMNS, at + i
        a, b = _written(s, row, decay, k[j], q[j], d0, d1, a, b)
        c, d = _written(s, row + COLUMNS, decay, k[j + 1], q[j + 1], d0, d1, c, d)
        e, f = _written(s, row + 2 * COLUMNS, decay, k[j + 2], q[j + 2], d0, d1, e, f)
        g, h = _written(s, row + 3 * COLUMNS, decay, k[j + 3], q[j + 3], d0, d1, g, h)
    store(v, place, (a + c) + (e + g))
    store(v, place + LANES, (b + d) + (f + h))


@inline
def _taken(state: Any, at: int, k_size: int, v_size: int, count: int, s: Any) -> None:
    """32 columns of a state, with rows of zeros up to a multiple of 4."""
    for i in range(k_size):
        _copied(state, at + i * v_size, count, s, i * COLUMNS)
    for i in range(k_size * COLUMNS, -(-k_size // UNROLLED) * UNROLLED * COLUMNS):
        s[i] = np.float32(0)


@inline
def _put(s: Any, k_size: int, v_size: int, count: int, state: Any, at: int) -> None:
    for i in range(k_size):
        to = at + i * v_size
        if count == COLUMNS:
            store(state, to, load(s, i * COLUMNS))
            store(state, to + LANES, load(s, i * COLUMNS + LANES))
        else:
            for c in range(count):
                state[to + c] = s[i * COLUMNS + c]


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
                _unit(k, t * k_stride + of_k, k_size, ONE, k_unit, i * rows)
                _unit(q, t * q_stride + of_k, k_size, scale, q_unit, i * rows)
            for column in range(0, v_size, COLUMNS):
                width, place = min(COLUMNS, v_size - column), task * k_size * v_size + column
                _taken(last if first else state, place, k_size, v_size, width, s)
                for i in range(count):
                    t = b * steps + first + i
                    _copied(v, t * v_stride + h * v_size + column, width, moving, i * COLUMNS)
                    decay, share = exp(g[t * heads + h]), number(beta[t * heads + h])
                    _position(s, k_unit, q_unit, i * rows, rows, moving, i * COLUMNS, decay, share)
                    for c in range(width):
                        o[(t * heads + h) * v_size + column + c] = rounded(moving[i * COLUMNS + c], o)
                _put(s, k_size, v_size, width, last, place)


@kernel
def delta_rule(at: Any, sizes: Any, like: Any) -> None:
    """o `[B, T, H, V]` and the last state. `at` are the addresses of q, k, v, g, beta, the state, o and the last state;
    sizes B, T, H', H, K, V, and the distances of two positions of q, k and v."""
    batch, steps, k_heads, heads, k_size, v_size, q_stride, k_stride, v_stride = sizes
    count, floats, held = batch * steps, np.empty(0, np.float32), batch * heads * k_size * v_size
    q, k, v = (
        array(at[0], count * q_stride, like),
        array(at[1], count * k_stride, like),
        array(at[2], count * v_stride, like),
    )
    g, beta = array(at[3], count * heads, floats), array(at[4], count * heads, like)
    o = array(at[6], count * heads * v_size, like)
    _rule(q, k, v, g, beta, array(at[5], held, floats), sizes, o, array(at[7], held, floats))


@parallel
def _convolved(x: Any, w: Any, batch: int, steps: int, channels: int, taps: int, y: Any) -> None:
    blocks = -(-channels // AT_ONCE)
    for each in prange(batch * blocks):
        task = np.int64(each)
        b, first = task // blocks, task % blocks * AT_ONCE
        filters = aligned(taps * AT_ONCE, np.float32)
        end = min(first + AT_ONCE, channels)
        for c in range(first, end):
            for j in range(taps):
                filters[j * AT_ONCE + c - first] = number(w[c * taps + j])
        whole = first + (end - first) // LANES * LANES
        for t in range(steps):
            at, to = (b * (steps + taps - 1) + t) * channels, (b * steps + t) * channels
            for c in range(first, whole, LANES):
                value = zeros()
                for j in range(taps):
                    value = madd(load(x, at + j * channels + c), load(filters, j * AT_ONCE + c - first), value)
                store(y, to + c, _silu(value))
            for c in range(whole, end):
                one = np.float32(0)
                for j in range(taps):
                    one += number(x[at + j * channels + c]) * filters[j * AT_ONCE + c - first]
                y[to + c] = rounded(_silu(one), y)


@kernel
def short_conv(x_at: int, w_at: int, y_at: int, batch: int, steps: int, channels: int, taps: int, like: Any) -> None:
    """y `[B, T, C]` of x `[B, J - 1 + T, C]` and filters `[C, J]`."""
    x = array(x_at, batch * (steps + taps - 1) * channels, like)
    y = array(y_at, batch * steps * channels, like)
    _convolved(x, array(w_at, channels * taps, like), batch, steps, channels, taps, y)


@function
def _gated_norm(x: Any, at: int, gate: Any, gate_at: int, w: Any, size: int, eps: Any, y: Any, to: int) -> None:
    squares, whole = zeros(), size // LANES * LANES
    for i in range(at, at + whole, LANES):
        squares = madd(load(x, i), load(x, i), squares)
    mean = total(squares)
    for i in range(at + whole, at + size):
        mean += number(x[i]) * number(x[i])
    factor = ONE / np.float32(math.sqrt(mean / np.float32(size) + eps))
    for i in range(0, whole, LANES):
        store(y, to + i, load(x, at + i) * factor * load(w, i) * _silu(load(gate, gate_at + i)))
    for i in range(whole, size):
        y[to + i] = rounded(number(x[at + i]) * factor * number(w[i]) * _silu(number(gate[gate_at + i])), y)


@parallel
def _gated_norms(
    x: Any, gate: Any, w: Any, rows: int, heads: int, stride: int, lane: int, size: int, eps: Any, y: Any
) -> None:
    for each in prange(rows):
        row = np.int64(each)
        for h in range(heads):
            at = (row * heads + h) * size
            _gated_norm(x, at, gate, row * stride + h * lane, w, size, eps, y, at)


@kernel
def gated_rms_norm(at: Any, sizes: Any, eps: Any, like: Any) -> None:
    """y of x, both `[R, H, N]`, a gate whose rows and heads lie apart as the last two of the sizes say, after R, H and
    N; `at` are the addresses of x, gate, weight and y."""
    rows, heads, size, stride, lane = sizes
    gate = array(at[1], (rows - 1) * stride + (heads - 1) * lane + size, like)
    count, w = rows * heads * size, array(at[2], size, like)
    _gated_norms(array(at[0], count, like), gate, w, rows, heads, stride, lane, size, eps, array(at[3], count, like))


@inline
def _mixed(
    qkvz: Any, x: int, inputs: Any, b: int, position: int, slots: int, channels: int, w: Any, taps: int, c: int
) -> Any:
    """The convolution of channel c at a position; what came before lies in a ring."""
    value = number(qkvz[x + c]) * number(w[c * taps + taps - 1])
    for j in range(1, taps):
        slot = (position - j) % slots
        value += number(inputs[(b * slots + slot) * channels + c]) * number(w[c * taps + taps - 1 - j])
    return _silu(value)


@parallel
def _step(
    qkvz: Any, ba: Any, w: Any, decay: Any, step: Any, norm: Any, inputs: Any, state: Any, positions: Any, sizes: Any,
    eps: Any, factor: Any, y: Any,
) -> None:  # fmt: skip
    k_heads, heads, k_size, v_size, taps, slots, states = sizes
    keys, values, group = k_heads * k_size, heads * v_size, heads // k_heads
    channels, rows = 2 * keys + values, -(-k_size // UNROLLED) * UNROLLED
    scale = ONE / np.float32(math.sqrt(np.float32(k_size)))
    for each in prange(len(positions) * k_heads):
        task = np.int64(each)
        b, of = task // k_heads, task % k_heads
        position, x = positions[b], b * (channels + values)
        mixed, o = aligned(max(k_size, v_size), np.float32), aligned(-(-v_size // COLUMNS) * COLUMNS, np.float32)
        k_unit, q_unit = aligned(rows, np.float32), aligned(rows, np.float32)
        s, ring = aligned(rows * COLUMNS, np.float32), (b * slots + position % slots) * channels
        for part in range(2):
            first = part * keys + of * k_size
            for i in range(k_size):
                mixed[i] = _mixed(qkvz, x, inputs, b, position, slots, channels, w, taps, first + i)
                inputs[ring + first + i] = qkvz[x + first + i]
            _unit(mixed, 0, k_size, scale if part == 0 else ONE, q_unit if part == 0 else k_unit, 0)
        for h in range(of * group, of * group + group):
            first = 2 * keys + h * v_size
            for i in range(v_size):
                mixed[i] = _mixed(qkvz, x, inputs, b, position, slots, channels, w, taps, first + i)
                inputs[ring + first + i] = qkvz[x + first + i]
            logit, late = -number(ba[2 * b * heads + h]), number(ba[(2 * b + 1) * heads + h]) + step[h]
            late = late if late > FLAT else np.float32(math.log1p(exp(late)))
            kept, share = exp(-exp(decay[h]) * late), factor / (ONE + exp(logit))
            old, new = (position - 1) % states, position % states
            for column in range(0, v_size, COLUMNS):
                width, place = min(COLUMNS, v_size - column), h * k_size * v_size + column
                _taken(state, (b * states + old) * heads * k_size * v_size + place, k_size, v_size, width, s)
                _copied(mixed, column, width, o, column)
                _position(s, k_unit, q_unit, 0, rows, o, column, kept, share)
                _put(s, k_size, v_size, width, state, (b * states + new) * heads * k_size * v_size + place)
            to = (b * heads + h) * v_size
            _gated_norm(o, 0, qkvz, x + channels + h * v_size, norm, v_size, eps, y, to)


@kernel
def delta_step(at: Any, batch: int, sizes: Any, eps: Any, factor: Any, like: Any) -> None:
    """y `[B, H V]`, and the input and the state of each row's position where they are kept. `at` are the addresses of
    qkvz, ba, the filters, decay, step, the norm's weight, the inputs `[B, slots, C]`, the states `[B, states, H, K, V]`,
    the positions and y; sizes H', H, K, V, J, slots, states."""
    k_heads, heads, k_size, v_size, taps, slots, states = sizes
    values, floats = heads * v_size, np.empty(0, np.float32)
    channels = 2 * k_heads * k_size + values
    qkvz, ba = array(at[0], batch * (channels + values), like), array(at[1], 2 * batch * heads, like)
    w, norm = array(at[2], channels * taps, like), array(at[5], v_size, like)
    decay, step = array(at[3], heads, floats), array(at[4], heads, floats)
    inputs = array(at[6], batch * slots * channels, like)
    state = array(at[7], batch * states * heads * k_size * v_size, floats)
    positions, y = array(at[8], batch, np.empty(0, np.int64)), array(at[9], batch * values, like)
    _step(qkvz, ba, w, decay, step, norm, inputs, state, positions, sizes, eps, factor, y)
