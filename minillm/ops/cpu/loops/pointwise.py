"""What happens to each value between the products: norms, rotation, activation, in one pass over a row and with one
rounding. Shapes: R rows, N values of a row, F half of one; B batch, T tokens, H query heads, K kv heads, D head_dim."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.jit import array, function, inline, kernel, parallel
from minillm.ops.cpu.loops.vector import (
    LANES,
    floor,
    larger,
    load,
    madd,
    number,
    rounded,
    smaller,
    store,
    total,
    two_to,
    zeros,
)

SILU, GELU_TANH, CLAMPED, UNSHIFTED, CAPPED = range(5)  # activations by number; kernels get (number, limit, alpha)
ALONE = 16  # rows that one thread has
ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)


@inline
def powers(x: Any) -> Any:
    """2**n and e**r - 1 of a float or a vector x = n log 2 + r, |r| <= log(2) / 2 (Cephes' expf). Below -87 and above
    88 x is that bound."""
    x = larger(np.float32(-87), smaller(np.float32(88), x))
    n = floor(madd(x, np.float32(1.4426950408889634), HALF))
    r = madd(n, np.float32(2.12194440e-4), madd(n, np.float32(-0.693359375), x))
    p = madd(r, np.float32(1.9875691500e-4), np.float32(1.3981999507e-3))
    p = madd(p, r, np.float32(8.3334519073e-3))
    p = madd(p, r, np.float32(4.1665795894e-2))
    p = madd(p, r, np.float32(1.6666665459e-1))
    p = madd(p, r, np.float32(5.0000001201e-1))
    return two_to(n), madd(p, r * r, r)


@inline
def exp(x: Any) -> Any:
    """e**x within 2 units in the last place; e**-87, which is next to nothing, below -87."""
    power, less = powers(x)
    return (less + ONE) * power


@inline
def tanh(x: Any) -> Any:
    """(e**2x - 1) / (e**2x + 1), where e**2x is never rounded before 1 is taken away: a small x would be lost in it."""
    power, less = powers(x * TWO)
    above = madd(less, power, power - ONE)
    return above / (above + TWO)


@inline
def activated(gate: Any, up: Any, activation: Any) -> Any:
    """act(gate) * up, as `reference.gated_act` has it."""
    kind, limit, alpha = activation
    if kind == SILU:
        return gate / (ONE + exp(gate * -ONE)) * up
    if kind == GELU_TANH:
        inside = np.float32(0.7978845608028654) * (gate + np.float32(0.044715) * gate * gate * gate)
        return gate / (ONE + exp(inside * -TWO)) * up  # (1 + tanh(z)) / 2 is the sigmoid of 2z
    if kind == CAPPED:
        return smaller(limit, gate / (ONE + exp(gate * -ONE))) * larger(-limit, smaller(limit, up))
    gate, up = smaller(limit, gate), larger(-limit, smaller(limit, up))
    up = up if kind == UNSHIFTED else up + ONE
    return gate / (ONE + exp(gate * -alpha)) * up


@parallel
def _gate(source: Any, rows: int, inner: int, activation: Any, y: Any) -> None:
    for each in prange(rows):
        row = np.int64(each)
        at, other, to = 2 * row * inner, (2 * row + 1) * inner, row * inner
        for f in range(0, inner - LANES + 1, LANES):
            store(y, to + f, activated(load(source, at + f), load(source, other + f), activation))
        for f in range(inner // LANES * LANES, inner):
            y[to + f] = rounded(activated(number(source[at + f]), number(source[other + f]), activation), y)


@kernel
def gated_act(source_at: int, y_at: int, rows: int, inner: int, activation: Any, like: Any) -> None:
    """y `[R, F]` = act(gate) * up of `[R, 2F]`."""
    _gate(array(source_at, 2 * rows * inner, like), rows, inner, activation, array(y_at, rows * inner, like))


@function
def norm(x: Any, at: int, w: Any, size: int, numbers: Any, y: Any, to: int) -> None:
    """rms_norm of x[at : at + size] into y[to : to + size]; numbers are eps, offset and whether it is rounded before
    the weight."""
    eps, offset, early = numbers
    squares, whole = zeros(), size // LANES * LANES
    for i in range(at, at + whole, LANES):
        squares = madd(load(x, i), load(x, i), squares)
    mean = total(squares)
    for i in range(at + whole, at + size):
        mean += number(x[i]) * number(x[i])
    factor = ONE / np.float32(math.sqrt(mean / np.float32(size) + eps))
    if early:
        for i in range(0, whole, LANES):
            store(y, to + i, load(x, at + i) * factor)
            store(y, to + i, load(y, to + i) * (load(w, i) + offset))
        for i in range(whole, size):
            y[to + i] = rounded(number(rounded(number(x[at + i]) * factor, y)) * (number(w[i]) + offset), y)
    else:
        for i in range(0, whole, LANES):
            store(y, to + i, load(x, at + i) * factor * (load(w, i) + offset))
        for i in range(whole, size):
            y[to + i] = rounded(number(x[at + i]) * factor * (number(w[i]) + offset), y)


@inline
def _norm_of_sum(x: Any, residual: Any, s: Any, w: Any, row: int, size: int, numbers: Any, y: Any) -> None:
    for i in range(row * size, (row + 1) * size if len(residual) else 0):
        s[i] = rounded(number(x[i]) + number(residual[i]), s)
    norm(s, row * size, w, size, numbers, y, row * size)


@parallel
def _norm_rows(x: Any, residual: Any, s: Any, w: Any, rows: int, size: int, numbers: Any, y: Any) -> None:
    for row in prange(rows):
        _norm_of_sum(x, residual, s, w, np.int64(row), size, numbers, y)


@kernel
def rms_norm(
    x_at: int, residual_at: int, s_at: int, w_at: int, y_at: int, rows: int, size: int, numbers: Any, like: Any
) -> None:
    """y `[R, N]` = rms_norm(s), where s is x, or where there is a residual x + residual and written. With a few rows
    one thread is done before a second has started."""
    count, there = rows * size, rows * size if residual_at else 0
    x, residual, s = array(x_at, count, like), array(residual_at, there, like), array(s_at, count, like)
    w, y = array(w_at, size, like), array(y_at, count, like)
    if rows > ALONE:
        _norm_rows(x, residual, s, w, rows, size, numbers, y)
    for row in range(rows if rows <= ALONE else 0):
        _norm_of_sum(x, residual, s, w, row, size, numbers, y)


@kernel
def add(x_at: int, y_at: int, s_at: int, count: int, like: Any) -> None:
    """s = x + y."""
    x, y, s = array(x_at, count, like), array(y_at, count, like), array(s_at, count, like)
    for i in range(count):
        s[i] = rounded(number(x[i]) + number(y[i]), s)


@kernel
def cos_sin(at: Any, rows: int, steps: int, half: int, of_rows: Any, like: Any) -> None:
    """cos and sin `[B, T, half]` of positions times rates, both times a factor. `at` are the addresses of positions
    `[B, T]`, rates `[B, half]`, factors `[B]`, cos and sin; of_rows says of which of the first three each row has its
    own."""
    positions = array(at[0], (rows if of_rows[0] else 1) * steps, np.empty(0, np.int64))
    own = rows if of_rows[1] else 1
    rates, factors = array(at[1], own * half, np.empty(0, np.float32)), array(at[2], own, np.empty(0, np.float32))
    cos, sin = array(at[3], rows * steps * half, like), array(at[4], rows * steps * half, like)
    for row in range(rows):
        rate = row if of_rows[1] else 0
        for t in range(steps):
            position = np.float32(positions[(row if of_rows[0] else 0) * steps + t])
            for i in range(half):
                phase, to = position * rates[rate * half + i], (row * steps + t) * half + i
                cos[to] = rounded(np.float32(math.cos(phase)) * factors[rate], cos)
                sin[to] = rounded(np.float32(math.sin(phase)) * factors[rate], sin)


@function
def _rotate(
    x: Any, at: int, cos: Any, sin: Any, phase: int, half: int, size: int, halves: bool, y: Any, to: int
) -> None:
    """One head of `size` values, of which the first 2 * half turn; `halves`: value i with i + half, else with i + 1."""
    if halves:
        whole = half // LANES * LANES
        for i in range(0, whole, LANES):
            va, vb = load(x, at + i), load(x, at + half + i)
            vc, vs = load(cos, phase + i), load(sin, phase + i)
            store(y, to + i, va * vc - vb * vs)
            store(y, to + half + i, vb * vc + va * vs)
        for i in range(whole, half):
            a, b = number(x[at + i]), number(x[at + half + i])
            c, s = number(cos[phase + i]), number(sin[phase + i])
            y[to + i], y[to + half + i] = rounded(a * c - b * s, y), rounded(b * c + a * s, y)
    else:
        for i in range(half):
            a, b = number(x[at + 2 * i]), number(x[at + 2 * i + 1])
            c, s = number(cos[phase + i]), number(sin[phase + i])
            y[to + 2 * i], y[to + 2 * i + 1] = rounded(a * c - b * s, y), rounded(b * c + a * s, y)
    for i in range(2 * half, size):
        y[to + i] = x[at + i]


@parallel
def _place(
    count: int, qkv: Any, q: Any, k_cache: Any, v_cache: Any, slots: Any, cos: Any, sin: Any, q_weight: Any,
    k_weight: Any, sizes: Any, numbers: Any,
) -> None:  # fmt: skip
    """q, k and v of each token b * T + t."""
    steps, heads, kv_heads, size, capacity, half, halves = sizes
    width = heads + 2 * kv_heads
    for each in prange(count):
        token = np.int64(each)
        t, b = token % steps, token // steps
        slot = slots[token if len(slots) > steps else t]
        phase = (token if len(cos) > steps * half else t) * half
        normed = np.empty(size, qkv.dtype)
        for head in range(width):
            at = (token * width + head) * size
            to = ((b * kv_heads + (head - heads) % kv_heads) * capacity + slot) * size
            if head >= heads + kv_heads:
                v_cache[to : to + size] = qkv[at : at + size]
                continue
            if head < heads:
                to = (token * heads + head) * size
            source = qkv
            if len(q_weight):
                norm(qkv, at, q_weight if head < heads else k_weight, size, numbers, normed, 0)
                source, at = normed, 0
            _rotate(source, at, cos, sin, phase, half, size, halves, q if head < heads else k_cache, to)


@kernel
def qk_norm_rope_cache(
    at: Any, batch: int, slot_rows: int, phase_rows: int, sizes: Any, numbers: Any, like: Any
) -> None:
    """q `[B, T, H, D]`, and k and v into the caches. `at` are the addresses of qkv, q, the caches, slots, cos, sin and
    the norms' weights (or 0); sizes T, H, K, D, the caches' slots, the number of pairs that turn, and whether they are
    halves."""
    steps, heads, kv_heads, size, capacity, half, _ = sizes
    count, cached = batch * steps, batch * kv_heads * capacity * size
    qkv, q = array(at[0], count * (heads + 2 * kv_heads) * size, like), array(at[1], count * heads * size, like)
    k_cache, v_cache = array(at[2], cached, like), array(at[3], cached, like)
    slots = array(at[4], slot_rows * steps, np.empty(0, np.int64))
    cos, sin = array(at[5], phase_rows * steps * half, like), array(at[6], phase_rows * steps * half, like)
    weights = size if at[7] else 0
    q_weight, k_weight = array(at[7], weights, like), array(at[8], weights, like)
    _place(count, qkv, q, k_cache, v_cache, slots, cos, sin, q_weight, k_weight, sizes, numbers)
