"""Attention of a few queries over a cache, read once, in chunks of positions whose softmaxes are joined at the end
(Flash-Decoding; Dao et al. 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).

Chunks are counted from the first position that a query sees, so that its sums do not depend on what else is in the
batch. Shapes: B batch, T queries, H query heads, K kv heads, G = H / K, S slots, D and V values of a key and a value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.dots import totals
from minillm.ops.cpu.loops.jit import aligned, array, inline, kernel, parallel
from minillm.ops.cpu.loops.pointwise import exp, tanh
from minillm.ops.cpu.loops.products import dot, partial, prepare
from minillm.ops.cpu.loops.vector import LANES, larger, largest, load, madd, number, rounded, splat, store, total, zeros

CHUNK = 512
WIDTH = 64  # values of a head that are summed up at once
LOWEST = np.float32(-3e38)


@inline
def _scores(k: Any, rows: Any, count: int, q: Any, at: int, size: int, parts: Any, scores: Any, to: int) -> None:
    """scores[to + i] = the query of `size` values at q[at] times k[rows[i]:], of 16 keys together."""
    whole = count // LANES * LANES if size % 32 == 0 else 0
    for i in range(0, whole, LANES):
        for j in range(LANES):
            store(parts, j * LANES, partial(k, rows[i + j], q, at, size))
        store(scores, to + i, totals(parts, 0))
    for i in range(whole, count):
        scores[to + i] = dot(k, rows[i], q, at, size)


@inline
def _wide_values(p: Any, v: Any, rows: Any, count: int, heads: Any, d: int, sums: Any, to: int, size: int) -> None:
    """As `_add_values`, for four heads and 64 values from the d-th on: 16 sums, in registers from key to key."""
    e, f, g, h = heads[0] * CHUNK, heads[1] * CHUNK, heads[2] * CHUNK, heads[3] * CHUNK
    a0, b0, c0, d0, a1, b1, c1, d1 = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    a2, b2, c2, d2, a3, b3, c3, d3 = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    for i in range(count):
        at = rows[i] + d
        x, y, z, w = load(v, at), load(v, at + LANES), load(v, at + 2 * LANES), load(v, at + 3 * LANES)
        one, two, three, four = splat(p[e + i]), splat(p[f + i]), splat(p[g + i]), splat(p[h + i])
        a0, a1, a2, a3 = madd(x, one, a0), madd(y, one, a1), madd(z, one, a2), madd(w, one, a3)
        b0, b1, b2, b3 = madd(x, two, b0), madd(y, two, b1), madd(z, two, b2), madd(w, two, b3)
        c0, c1, c2, c3 = madd(x, three, c0), madd(y, three, c1), madd(z, three, c2), madd(w, three, c3)
        d0, d1, d2, d3 = madd(x, four, d0), madd(y, four, d1), madd(z, four, d2), madd(w, four, d3)
    for i, (x, y, z, w) in enumerate(((a0, a1, a2, a3), (b0, b1, b2, b3), (c0, c1, c2, c3), (d0, d1, d2, d3))):
        at = to + heads[i] * size + d
        store(sums, at, x)
        store(sums, at + LANES, y)
        store(sums, at + 2 * LANES, z)
        store(sums, at + 3 * LANES, w)


@inline
def _add_values(p: Any, v: Any, rows: Any, count: int, group: int, sums: Any, to: int, size: int) -> None:
    """sums[to + g size : …] = the sum of p[512 g + i] v[rows[i] : rows[i] + size] for each of G heads, four of which
    share what is loaded of v."""
    wide, whole = size // WIDTH * WIDTH, size // LANES * LANES
    for first in range(0, group, 4):
        last = group - 1
        heads = first, min(first + 1, last), min(first + 2, last), min(first + 3, last)
        for d in range(0, wide, WIDTH):
            _wide_values(p, v, rows, count, heads, d, sums, to, size)
    for g in range(group):
        for d in range(wide, whole, LANES):
            held = zeros()
            for i in range(count):
                held = madd(load(v, rows[i] + d), splat(p[g * CHUNK + i]), held)
            store(sums, to + g * size + d, held)
        for d in range(whole, size):
            for i in range(count):
                sums[to + g * size + d] += p[g * CHUNK + i] * number(v[rows[i] + d])


@inline
def capped(scores: Any, at: int, end: int, scale: Any, softcap: Any) -> None:
    """Each score times `scale`, then as softcap * tanh(score / softcap) where softcap is not 0."""
    for i in range(at, end, LANES):
        value = load(scores, i) * scale
        if softcap > 0:
            value = tanh(value / softcap) * softcap
        store(scores, i, value)


@inline
def softmax(scores: Any, at: int, end: int) -> Any:
    """exp(score - highest) in place of each score; returns the highest and the sum."""
    high, sums = splat(LOWEST), zeros()
    for i in range(at, end, LANES):
        high = larger(load(scores, i), high)
    highest = largest(high)
    for i in range(at, end, LANES):
        weight = exp(load(scores, i) - highest)
        store(scores, i, weight)
        sums = sums + weight
    return highest, total(sums)


@parallel
def _chunks(
    q: Any, k: Any, v: Any, first: Any, last: Any, table: Any, places: Any, sizes: Any, scale: Any, softcap: Any,
    highest: Any, weights: Any, sums: Any,
) -> None:  # fmt: skip
    """For chunk c of what query t of row b sees through kv head h: of each of its G heads the highest score, the sum of
    the weights and that of the weighted values."""
    steps, heads, kv_heads, k_size, v_size, k_slots, v_slots, k_stride, v_stride = sizes
    ring, offset, page, width, parts = places
    group = heads // kv_heads
    for each in prange(len(first) * kv_heads * parts):
        task = np.int64(each)
        query, h, c = task // (kv_heads * parts), task // parts % kv_heads, task % parts
        start = first[query] + c * CHUNK
        count = min(CHUNK, last[query] + 1 - start)
        if count <= 0:
            continue
        rows, value_rows = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64)
        lane = query // steps * kv_heads + h
        for i in range(count):
            rows[i] = start + i - offset
        for i in range(count if ring else 0):
            rows[i] = (start + i) % ring
        for i in range(count if page else 0):
            at = start + i
            rows[i] = np.int64(table[query * width + at // page]) * page + at % page
        for i in range(count):
            value_rows[i] = (lane * v_slots + rows[i]) * v_stride
            rows[i] = (lane * k_slots + rows[i]) * k_stride
        scores, one = aligned(group * CHUNK, np.float32), aligned(LANES * LANES, np.float32)
        for g in range(group):
            head = query * heads + h * group + g
            _scores(k, rows, count, q, head * k_size, k_size, one, scores, g * CHUNK)
            at, end = g * CHUNK, g * CHUNK + -(-count // LANES) * LANES
            capped(scores, at, end, scale, softcap)
            for i in range(at + count, end):
                scores[i] = LOWEST
            highest[task * group + g], weights[task * group + g] = softmax(scores, at, end)
        _add_values(scores, v, value_rows, count, group, sums, task * group * v_size, v_size)


@parallel
def _join(
    highest: Any, weights: Any, sums: Any, first: Any, last: Any, sinks: Any, sizes: Any, parts: int, y: Any
) -> None:
    """y `[B, T, H, V]`: the chunks of each head, brought to one highest score; a sink weighs and adds nothing."""
    heads, kv_heads, v_size = sizes
    group = heads // kv_heads
    for each in prange(len(first) * heads):
        at = np.int64(each)
        query, h, g = at // heads, at % heads // group, at % group
        used = (last[query] - first[query]) // CHUNK + 1
        top = number(sinks[h * group + g]) if len(sinks) else LOWEST
        for c in range(used):
            value = highest[((query * kv_heads + h) * parts + c) * group + g]
            top = value if not value <= top else top
        weight = exp(number(sinks[h * group + g]) - top) if len(sinks) else np.float32(0)
        made = np.zeros(v_size, np.float32)
        for c in range(used):
            part = ((query * kv_heads + h) * parts + c) * group + g
            factor = exp(highest[part] - top)
            weight += factor * weights[part]
            for d in range(v_size):
                made[d] += factor * sums[part * v_size + d]
        for d in range(v_size):
            y[at * v_size + d] = rounded(made[d] / weight, y)


@kernel
def attention(
    q_at: int, k_at: int, v_at: int, sinks_at: int, y_at: int, first_at: int, last_at: int, table_at: int, batch: int,
    sizes: Any, places: Any, scale: Any, softcap: Any, like: Any,
) -> None:  # fmt: skip
    """y `[B, T, H, V]` of q `[B, T, H, D]` over the keys `[B, K, S, D]` and values `[B, K, S, V]` of positions
    first[b, t] to last[b, t]. sizes are T, H, K, D, V, S of both and the distances of two keys and of two values;
    places are the size of a ring, or 0 and the position of slot 0; the size of a block and how many a sequence may
    have, whose numbers are at table_at, or 0; and the most chunks that a query has."""
    steps, heads, kv_heads, k_size, v_size, k_slots, v_slots, k_stride, v_stride = sizes
    page, width, parts = places[2:]
    count, lanes, whole = batch * steps, batch * kv_heads, np.empty(0, np.int64)
    first, last = array(first_at, count, whole), array(last_at, count, whole)
    table = array(table_at, count * width if page else 0, np.empty(0, np.int32))
    k, v = array(k_at, lanes * k_slots * k_stride, like), array(v_at, lanes * v_slots * v_stride, like)
    sinks, y = array(sinks_at, heads if sinks_at else 0, like), array(y_at, count * heads * v_size, like)
    q = prepare(array(q_at, count * heads * k_size, like), k)
    found = count * heads * parts
    highest, weights, sums = (
        np.empty(found, np.float32),
        np.empty(found, np.float32),
        np.zeros(found * v_size, np.float32),
    )
    _chunks(q, k, v, first, last, table, places, sizes, scale, softcap, highest, weights, sums)
    _join(highest, weights, sums, first, last, sinks, (heads, kv_heads, v_size), parts, y)
