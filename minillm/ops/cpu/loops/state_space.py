"""A state space (`ops/state_space.py`) at one position of each row, all between its products, without rounding between
them, and its state over any number of positions; and a convolution between two gates.

A state `[N, P]` is read and written once, a row after the other: 64 of its columns are in registers, with what they
are read for. Each head makes B and C of its group again, which is little beside its state.

Shapes: B rows, H heads of P values, G groups of N, C channels, J taps of a filter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.jit import aligned, array, function, kernel, parallel
from minillm.ops.cpu.loops.pointwise import ONE, exp
from minillm.ops.cpu.loops.recurrent import mixed_in, silu, softplus
from minillm.ops.cpu.loops.vector import LANES, load, madd, number, rounded, splat, store, zeros

COLUMNS = 4 * LANES  # of a state at a time
SLICE = 2 * LANES  # over many positions: so many rows of 128 values are half of the nearest cache


@function
def _advanced(
    state: Any, old: int, new: int, kept: Any, b: Any, c: Any, w: Any, n_size: int, p_size: int, y: Any
) -> None:
    """S <- kept S + B wᵀ from one place to another, y = Sᵀ C."""
    wide, whole = p_size // COLUMNS * COLUMNS, p_size // LANES * LANES
    for i in range(0, wide, COLUMNS):
        w0, w1, w2, w3 = load(w, i), load(w, i + LANES), load(w, i + 2 * LANES), load(w, i + 3 * LANES)
        y0, y1, y2, y3 = zeros(), zeros(), zeros(), zeros()
        for n in range(n_size):
            at, to, into, out = old + n * p_size + i, new + n * p_size + i, splat(b[n]), splat(c[n])
            s0, s1 = madd(into, w0, load(state, at) * kept), madd(into, w1, load(state, at + LANES) * kept)
            s2 = madd(into, w2, load(state, at + 2 * LANES) * kept)
            s3 = madd(into, w3, load(state, at + 3 * LANES) * kept)
            store(state, to, s0)
            store(state, to + LANES, s1)
            store(state, to + 2 * LANES, s2)
            store(state, to + 3 * LANES, s3)
            y0, y1, y2, y3 = madd(s0, out, y0), madd(s1, out, y1), madd(s2, out, y2), madd(s3, out, y3)
        store(y, i, y0)
        store(y, i + LANES, y1)
        store(y, i + 2 * LANES, y2)
        store(y, i + 3 * LANES, y3)
    for i in range(wide, whole, LANES):
        given, found = load(w, i), zeros()
        for n in range(n_size):
            row = madd(splat(b[n]), given, load(state, old + n * p_size + i) * kept)
            store(state, new + n * p_size + i, row)
            found = madd(row, splat(c[n]), found)
        store(y, i, found)
    for i in range(whole, p_size):
        one = np.float32(0)
        for n in range(n_size):
            value = state[old + n * p_size + i] * kept + b[n] * w[i]
            state[new + n * p_size + i] = value
            one += value * c[n]
        y[i] = one


@parallel
def _heads(
    zxbcd: Any, w: Any, bias: Any, decay: Any, shift: Any, skip: Any, inputs: Any, state: Any, positions: Any,
    places: Any, sizes: Any, limits: Any, v: Any,
) -> None:  # fmt: skip
    """v = (Sᵀ C + D x) silu(z), fp32 `[B, H P]`."""
    groups, heads, n_size, p_size, taps, slots, states = sizes
    inner, size, low, high = heads * p_size, heads * n_size * p_size, limits[0], limits[1]
    channels = inner + 2 * groups * n_size
    width = inner + channels + heads
    for each in prange(len(positions) * heads):
        task = np.int64(each)
        i, h = task // heads, task % heads
        group, first = h // (heads // groups), h % (heads // groups) == 0
        position, row, held = positions[i], places[i] if len(places) else i, (slots, channels, taps)
        at = i * width + inner  # of x, B and C
        x, given, y = aligned(p_size, np.float32), aligned(p_size, np.float32), aligned(p_size, np.float32)
        b, c = aligned(n_size, np.float32), aligned(n_size, np.float32)
        mixed_in(zxbcd, at, inputs, row, position, held, w, bias, h * p_size, p_size, True, x)
        mixed_in(zxbcd, at, inputs, row, position, held, w, bias, inner + group * n_size, n_size, first, b)
        after = inner + (groups + group) * n_size
        mixed_in(zxbcd, at, inputs, row, position, held, w, bias, after, n_size, first, c)
        d = softplus(number(zxbcd[at + channels + h]) + shift[h])
        d = max(low, min(high, d))
        for p in range(p_size):
            given[p] = d * x[p]
        old, new = (row * states + (position - 1) % states) * size, (row * states + position % states) * size
        place = h * n_size * p_size
        _advanced(state, old + place, new + place, exp(-exp(decay[h]) * d), b, c, given, n_size, p_size, y)
        to = i * inner + h * p_size
        for p in range(p_size):
            v[to + p] = (y[p] + skip[h] * x[p]) * silu(number(zxbcd[i * width + h * p_size + p]))


@function
def _stepped(s: Any, kept: Any, b: Any, c: Any, of: int, w: Any, n_size: int, y: Any) -> None:
    """S <- kept S + B wᵀ, y = Sᵀ C of as many columns as `SLICE`, two rows of the state at a time."""
    w0, w1, even = load(w, 0), load(w, LANES), n_size // 2 * 2
    y0, y1, y2, y3 = zeros(), zeros(), zeros(), zeros()
    for n in range(0, even, 2):
        at, first, second = n * SLICE, splat(b[of + n]), splat(b[of + n + 1])
        s0, s1 = madd(first, w0, load(s, at) * kept), madd(first, w1, load(s, at + LANES) * kept)
        s2 = madd(second, w0, load(s, at + SLICE) * kept)
        s3 = madd(second, w1, load(s, at + SLICE + LANES) * kept)
        store(s, at, s0)
        store(s, at + LANES, s1)
        store(s, at + SLICE, s2)
        store(s, at + SLICE + LANES, s3)
        first, second = splat(c[of + n]), splat(c[of + n + 1])
        y0, y1, y2, y3 = madd(s0, first, y0), madd(s1, first, y1), madd(s2, second, y2), madd(s3, second, y3)
    if even < n_size:
        at, first, second = even * SLICE, splat(b[of + even]), splat(c[of + even])
        s0, s1 = madd(first, w0, load(s, at) * kept), madd(first, w1, load(s, at + LANES) * kept)
        store(s, at, s0)
        store(s, at + LANES, s1)
        y0, y1 = madd(s0, second, y0), madd(s1, second, y1)
    store(y, 0, y0 + y2)
    store(y, LANES, y1 + y3)


@parallel
def _scanned(x: Any, d: Any, decay: Any, b: Any, c: Any, skip: Any, state: Any, made: Any, sizes: Any, y: Any) -> None:
    """Some columns of a head are one task: their state stays in the cache nearest to the processor."""
    batch, steps, groups, heads, n_size, p_size, apart = sizes
    slices = -(-p_size // SLICE)
    for each in prange(batch * heads * slices):
        task = np.int64(each)
        whose, first = task // slices, task % slices * SLICE
        i, h, count = whose // heads, whose % heads, min(SLICE, p_size - first)
        group, rate, place = h // (heads // groups), -exp(decay[h]), whose * n_size * p_size + first
        s, given, found = aligned(n_size * SLICE, np.float32), aligned(SLICE, np.float32), aligned(SLICE, np.float32)
        for k in range(SLICE):
            given[k] = np.float32(0)
        for n in range(n_size):
            for k in range(SLICE):
                s[n * SLICE + k] = state[place + n * p_size + k] if k < count else np.float32(0)
        for t in range(steps):
            at = i * steps + t
            late, from_x, to = d[at * heads + h], at * apart + h * p_size + first, (at * heads + h) * p_size + first
            for k in range(count):
                given[k] = late * number(x[from_x + k])
            _stepped(s, exp(rate * late), b, c, (at * groups + group) * n_size, given, n_size, found)
            for k in range(count):
                y[to + k] = found[k] + skip[h] * number(x[from_x + k])
        for n in range(n_size):
            for k in range(count):
                made[place + n * p_size + k] = s[n * SLICE + k]


@kernel
def scan(at: Any, sizes: Any, like: Any) -> None:
    """y fp32 `[B, T, H, P]`, and the states behind the last position. `at` are the addresses of x, d, A, B, C, D, the
    states `[B, H, N, P]` before and behind, and y, all but x fp32; sizes B, T, G, H, N, P, and how far two positions of
    x lie from each other."""
    batch, steps, groups, heads, n_size, p_size, apart = sizes
    floats, count, few = np.empty(0, np.float32), batch * steps * heads, batch * steps * groups * n_size
    x, d = array(at[0], (batch * steps - 1) * apart + heads * p_size, like), array(at[1], count, floats)
    b, c, decay, skip = (array(at[3], few, floats), array(at[4], few, floats), array(at[2], heads, floats),
                         array(at[5], heads, floats))  # fmt: skip
    whole = batch * heads * n_size * p_size
    state, made = array(at[6], whole, floats), array(at[7], whole, floats)
    _scanned(x, d, decay, b, c, skip, state, made, sizes, array(at[8], count * p_size, floats))


@parallel
def _normed(v: Any, norm: Any, groups: int, eps: Any, y: Any) -> None:
    size, each_of = len(v) // groups, len(norm) if len(norm) else 1
    for task in prange(groups):
        first = np.int64(task) * size
        total, factor = np.float32(0), ONE
        if len(norm):
            for i in range(first, first + size):
                total += v[i] * v[i]
            factor = ONE / np.float32(math.sqrt(total / np.float32(size) + eps))
        for i in range(first, first + size):
            weight = number(norm[i % each_of]) if len(norm) else ONE
            y[i] = rounded(v[i] * factor * weight, y)


@kernel
def state_step(at: Any, batch: int, held: int, sizes: Any, limits: Any, eps: Any, like: Any) -> None:
    """y `[B, H P]`, and the input and the state of each row's position where they are kept. `at` are the addresses of
    zxbcd, the filters, their bias, A, t, D, the norm's weight, inputs `[held, slots, C]`, states
    `[held, states, H, N, P]`, the positions, which of these rows are meant (0 for all in order) and y, those of a bias
    and of a norm 0 where there is none; sizes G, H, N, P, J, slots, states."""
    groups, heads, n_size, p_size, taps, slots, states = sizes
    inner, floats, whole = heads * p_size, np.empty(0, np.float32), np.empty(0, np.int64)
    channels = inner + 2 * groups * n_size
    zxbcd = array(at[0], batch * (inner + channels + heads), like)
    w, bias = array(at[1], channels * taps, like), array(at[2], channels if at[2] else 0, like)
    decay, shift, skip = array(at[3], heads, floats), array(at[4], heads, floats), array(at[5], heads, floats)
    norm, inputs = array(at[6], inner if at[6] else 0, like), array(at[7], held * slots * channels, like)
    state = array(at[8], held * states * heads * n_size * p_size, floats)
    positions, places = array(at[9], batch, whole), array(at[10], batch if at[10] else 0, whole)
    v = aligned(batch * inner, np.float32)
    _heads(zxbcd, w, bias, decay, shift, skip, inputs, state, positions, places, sizes, limits, v)
    _normed(v, norm, batch * groups, eps, array(at[11], batch * inner, like))


@kernel
def gated_conv_step(at: Any, batch: int, held: int, sizes: Any, like: Any) -> None:
    """y `[B, C]` = c conv(b u), and b u of each row's position where it is kept. `at` are the addresses of b, c and u
    side by side `[B, 3 C]`, the filters `[C, J]`, what is kept `[held, slots, C]`, the positions, which of these rows
    are meant (0 for all in order) and y; sizes C, J and slots."""
    channels, taps, slots = sizes
    bcu, w, whole = array(at[0], batch * 3 * channels, like), array(at[1], channels * taps, like), np.empty(0, np.int64)
    kept, y = array(at[2], held * slots * channels, like), array(at[5], batch * channels, like)
    positions, places = array(at[3], batch, whole), array(at[4], batch if at[4] else 0, whole)
    for i in range(batch):
        position, row, first = positions[i], (places[i] if len(places) else i) * slots, i * 3 * channels
        here = (row + position % slots) * channels
        for x in range(channels):
            kept[here + x] = rounded(number(bcu[first + x]) * number(bcu[first + 2 * channels + x]), kept)
            total = np.float32(0)
            for j in range(taps):
                past = (row + (position - j) % slots) * channels + x
                total += number(kept[past]) * number(w[x * taps + taps - 1 - j])
            y[i * channels + x] = rounded(total * number(bcu[first + channels + x]), y)
