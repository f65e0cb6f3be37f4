"""The selective scan (`ops/selective.py`) over any number of positions, and the short convolution before it at one
position of each row.

64 channels are one task: their state and its rates stay in the L1 cache for all positions.

Shapes: B rows, T positions, I channels, N values of a channel's state, J taps of a filter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.jit import aligned, array, kernel, parallel
from minillm.ops.cpu.loops.pointwise import exp
from minillm.ops.cpu.loops.recurrent import mixed_in, silu
from minillm.ops.cpu.loops.vector import LANES, load, madd, number, rounded, splat, store

AT_ONCE = 4 * LANES  # channels that are one task


@parallel
def _channels(
    x: Any, z: Any, d: Any, b: Any, c: Any, decay: Any, skip: Any, state: Any, made: Any, positions: Any, places: Any,
    sizes: Any, y: Any,
) -> None:  # fmt: skip
    batch, steps, n_size, channels, states = sizes
    blocks, each_of = -(-channels // AT_ONCE), n_size * channels
    for each in prange(batch * blocks):
        task = np.int64(each)
        i, first = task // blocks, task % blocks * AT_ONCE
        count, old, new = min(AT_ONCE, channels - first), i * each_of, i * each_of
        if len(positions):
            row, position = (places[i] if len(places) else i) * states, positions[i]
            old, new = (row + (position - 1) % states) * each_of, (row + position % states) * each_of
        whole = count // LANES * LANES
        rates, s = aligned(n_size * AT_ONCE, np.float32), aligned(n_size * AT_ONCE, np.float32)
        for n in range(n_size):
            for j in range(count):
                rates[n * AT_ONCE + j] = -exp(decay[n * channels + first + j])
                s[n * AT_ONCE + j] = state[old + n * channels + first + j]
        for t in range(steps):
            at, of = (i * steps + t) * channels + first, (i * steps + t) * n_size
            for j in range(0, whole, LANES):
                late, given = load(d, at + j), load(x, at + j)
                found, written = load(skip, first + j) * given, late * given
                for n in range(n_size):
                    k = n * AT_ONCE + j
                    now = madd(splat(number(b[of + n])), written, load(s, k) * exp(load(rates, k) * late))
                    store(s, k, now)
                    found = madd(splat(number(c[of + n])), now, found)
                store(y, at + j, found * silu(load(z, at + j)))
            for j in range(whole, count):
                late, given = d[at + j], number(x[at + j])
                found, written = skip[first + j] * given, late * given
                for n in range(n_size):
                    k = n * AT_ONCE + j
                    s[k] = s[k] * exp(rates[k] * late) + number(b[of + n]) * written
                    found += number(c[of + n]) * s[k]
                y[at + j] = rounded(found * silu(number(z[at + j])), y)
        for n in range(n_size):
            for j in range(count):
                made[new + n * channels + first + j] = s[n * AT_ONCE + j]


@kernel
def selective(at: Any, held: int, sizes: Any, like: Any) -> None:
    """y `[B, T, I]`, and the state behind the last position. `at` are the addresses of x, z, d, B, C, A, D, the states
    that are read, those that are written, the positions, which rows of the states are meant (0 for all in order), and
    y. Without positions (0) the states are `[held, N, I]`, with them `[held, states, N, I]`, in which each row's are
    where its position says. Sizes B, T, N, I, states."""
    batch, steps, n_size, channels, states = sizes
    count, few, floats, whole = (
        batch * steps * channels,
        batch * steps * n_size,
        np.empty(0, np.float32),
        np.empty(0, np.int64),
    )
    x, z, d = array(at[0], count, like), array(at[1], count, like), array(at[2], count, floats)
    b, c = array(at[3], few, like), array(at[4], few, like)
    decay, skip = array(at[5], n_size * channels, floats), array(at[6], channels, floats)
    kept = held * (states if at[9] else 1) * n_size * channels
    state, made = array(at[7], kept, floats), array(at[8], kept, floats)
    positions, places = array(at[9], batch if at[9] else 0, whole), array(at[10], batch if at[10] else 0, whole)
    _channels(x, z, d, b, c, decay, skip, state, made, positions, places, sizes, array(at[11], count, like))


@parallel
def _convolved(new: Any, w: Any, bias: Any, inputs: Any, positions: Any, places: Any, sizes: Any, y: Any) -> None:
    channels = sizes[1]
    blocks = -(-channels // AT_ONCE)
    for each in prange(len(positions) * blocks):
        task = np.int64(each)
        i, first = task // blocks, task % blocks * AT_ONCE
        count, row = min(AT_ONCE, channels - first), places[i] if len(places) else i
        mixed, at = aligned(AT_ONCE, np.float32), i * channels
        mixed_in(new, at, inputs, row, positions[i], sizes, w, bias, first, count, True, mixed)
        for j in range(count):
            y[at + first + j] = rounded(mixed[j], y)


@kernel
def short_conv_step(at: Any, batch: int, held: int, sizes: Any, like: Any) -> None:
    """y `[B, I]`, and the input of each row's position where it is kept. `at` are the addresses of the new inputs, the
    filters, their bias (0 for none), inputs `[held, slots, I]`, the positions, which of these rows are meant (0 for all
    in order) and y; sizes slots, I, J."""
    slots, channels, taps = sizes
    whole, bias = np.empty(0, np.int64), array(at[2], channels if at[2] else 0, like)
    new, w, inputs = (
        array(at[0], batch * channels, like),
        array(at[1], channels * taps, like),
        array(at[3], held * slots * channels, like),
    )
    positions, places = array(at[4], batch, whole), array(at[5], batch if at[5] else 0, whole)
    _convolved(new, w, bias, inputs, positions, places, sizes, array(at[6], batch * channels, like))
