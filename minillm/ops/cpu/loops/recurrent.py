"""Recurrent layers around their rule (`delta.py`): the short convolution, the gated norm, and all of a layer between
its products for a single position, without rounding between them.

Shapes as in `delta.py`; R rows, N values of a norm, C channels, J taps of a filter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.delta import COLUMNS, UNROLLED, advance, copied, put, taken, unit
from minillm.ops.cpu.loops.jit import aligned, array, function, inline, kernel, parallel
from minillm.ops.cpu.loops.pointwise import ONE, exp
from minillm.ops.cpu.loops.vector import LANES, load, madd, number, rounded, store, total, zeros

FLAT = np.float32(20)  # from here on softplus(x) is x
AT_ONCE = 4 * LANES  # channels that are one task


@inline
def silu(x: Any) -> Any:
    return x / (ONE + exp(x * -ONE))


@inline
def softplus(x: Any) -> Any:
    return x if x > FLAT else np.float32(math.log1p(exp(x)))


@parallel
def _convolved(x: Any, w: Any, bias: Any, batch: int, steps: int, channels: int, taps: int, y: Any) -> None:
    blocks = -(-channels // AT_ONCE)
    for each in prange(batch * blocks):
        task = np.int64(each)
        b, first = task // blocks, task % blocks * AT_ONCE
        filters, shift = aligned(taps * AT_ONCE, np.float32), aligned(AT_ONCE, np.float32)
        end = min(first + AT_ONCE, channels)
        for c in range(first, end):
            shift[c - first] = number(bias[c]) if len(bias) else np.float32(0)
            for j in range(taps):
                filters[j * AT_ONCE + c - first] = number(w[c * taps + j])
        whole = first + (end - first) // LANES * LANES
        for t in range(steps):
            at, to = (b * (steps + taps - 1) + t) * channels, (b * steps + t) * channels
            for c in range(first, whole, LANES):
                value = load(shift, c - first)
                for j in range(taps):
                    value = madd(load(x, at + j * channels + c), load(filters, j * AT_ONCE + c - first), value)
                store(y, to + c, silu(value))
            for c in range(whole, end):
                one = shift[c - first]
                for j in range(taps):
                    one += number(x[at + j * channels + c]) * filters[j * AT_ONCE + c - first]
                y[to + c] = rounded(silu(one), y)


@kernel
def short_conv(at: Any, batch: int, steps: int, channels: int, taps: int, like: Any) -> None:
    """y `[B, T, C]` of x `[B, J - 1 + T, C]`; `at` are the addresses of x, filters `[C, J]`, their bias `[C]`, 0 for
    none, and y."""
    x, w = array(at[0], batch * (steps + taps - 1) * channels, like), array(at[1], channels * taps, like)
    bias, y = array(at[2], channels if at[2] else 0, like), array(at[3], batch * steps * channels, like)
    _convolved(x, w, bias, batch, steps, channels, taps, y)


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
        store(y, to + i, load(x, at + i) * factor * load(w, i) * silu(load(gate, gate_at + i)))
    for i in range(whole, size):
        y[to + i] = rounded(number(x[at + i]) * factor * number(w[i]) * silu(number(gate[gate_at + i])), y)


@parallel
def _gated_norms(x: Any, gate: Any, w: Any, sizes: Any, eps: Any, y: Any) -> None:
    rows, heads, size, stride, lane = sizes
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
    _gated_norms(array(at[0], count, like), gate, w, sizes, eps, array(at[3], count, like))


@function
def mixed_in(
    qkvz: Any, x: int, inputs: Any, row: int, position: int, sizes: Any, w: Any, bias: Any, first: int, count: int,
    keeps: bool, y: Any,
) -> None:  # fmt: skip
    """The convolution of the channels from `first` on at a position, with what came before from the ring, into which
    this position goes if it `keeps` it; a bias, if it is not empty, and SiLU."""
    slots, channels, taps = sizes
    for i in range(count):
        y[i] = number(qkvz[x + first + i]) * number(w[(first + i) * taps + taps - 1])
        if len(bias):
            y[i] += number(bias[first + i])
    for j in range(1, taps):
        at = (row * slots + (position - j) % slots) * channels + first
        for i in range(count):
            y[i] += number(inputs[at + i]) * number(w[(first + i) * taps + taps - 1 - j])
    to, whole = (row * slots + position % slots) * channels + first, count // LANES * LANES
    if keeps:
        for i in range(count):
            inputs[to + i] = qkvz[x + first + i]
    for i in range(0, whole, LANES):
        store(y, i, silu(load(y, i)))
    for i in range(whole, count):
        y[i] = silu(y[i])


@parallel
def _step(
    qkvz: Any, ba: Any, w: Any, decay: Any, step: Any, norm: Any, inputs: Any, state: Any, positions: Any, places: Any,
    sizes: Any, eps: Any, factor: Any, y: Any,
) -> None:  # fmt: skip
    k_heads, heads, k_size, v_size, taps, slots, states = sizes
    keys, values, group = k_heads * k_size, heads * v_size, heads // k_heads
    channels, rows = 2 * keys + values, -(-k_size // UNROLLED) * UNROLLED
    scale = ONE / np.float32(math.sqrt(np.float32(k_size)))
    for each in prange(len(positions) * k_heads):
        task = np.int64(each)
        b, of = task // k_heads, task % k_heads
        position, x, row = positions[b], b * (channels + values), places[b] if len(places) else b
        mixed, o = aligned(max(k_size, v_size), np.float32), aligned(-(-v_size // COLUMNS) * COLUMNS, np.float32)
        k_unit, q_unit = aligned(rows, np.float32), aligned(rows, np.float32)
        s, held = aligned(rows * COLUMNS, np.float32), (slots, channels, taps)
        for part in range(2):
            mixed_in(qkvz, x, inputs, row, position, held, w, w[:0], part * keys + of * k_size, k_size, True, mixed)
            unit(mixed, 0, k_size, scale if part == 0 else ONE, q_unit if part == 0 else k_unit, 0)
        for h in range(of * group, of * group + group):
            mixed_in(qkvz, x, inputs, row, position, held, w, w[:0], 2 * keys + h * v_size, v_size, True, mixed)
            logit, late = -number(ba[2 * b * heads + h]), number(ba[(2 * b + 1) * heads + h]) + step[h]
            late = softplus(late)
            kept, share = exp(-exp(decay[h]) * late), factor / (ONE + exp(logit))
            old, new = (position - 1) % states, position % states
            for column in range(0, v_size, COLUMNS):
                width, place = min(COLUMNS, v_size - column), h * k_size * v_size + column
                taken(state, (row * states + old) * heads * k_size * v_size + place, k_size, v_size, width, s)
                copied(mixed, column, width, o, column)
                advance(s, k_unit, q_unit, 0, rows, o, column, kept, share)
                put(s, k_size, v_size, width, state, (row * states + new) * heads * k_size * v_size + place)
            to = (b * heads + h) * v_size
            _gated_norm(o, 0, qkvz, x + channels + h * v_size, norm, v_size, eps, y, to)


@kernel
def delta_step(at: Any, batch: int, held: int, sizes: Any, eps: Any, factor: Any, like: Any) -> None:
    """y `[B, H V]`, and the input and the state of each row's position where they are kept. `at` are the addresses of
    qkvz, ba, the filters, decay, step, the norm's weight, inputs `[held, slots, C]`, states `[held, states, H, K, V]`,
    the positions, which of these rows are meant (0 for all in order) and y; sizes H', H, K, V, J, slots, states."""
    k_heads, heads, k_size, v_size, taps, slots, states = sizes
    values, floats = heads * v_size, np.empty(0, np.float32)
    channels = 2 * k_heads * k_size + values
    qkvz, ba = array(at[0], batch * (channels + values), like), array(at[1], 2 * batch * heads, like)
    w, norm = array(at[2], channels * taps, like), array(at[5], v_size, like)
    decay, step = array(at[3], heads, floats), array(at[4], heads, floats)
    inputs = array(at[6], held * slots * channels, like)
    state = array(at[7], held * states * heads * k_size * v_size, floats)
    whole, y = np.empty(0, np.int64), array(at[10], batch * values, like)
    positions, places = array(at[8], batch, whole), array(at[9], batch if at[9] else 0, whole)
    _step(qkvz, ba, w, decay, step, norm, inputs, state, positions, places, sizes, eps, factor, y)
