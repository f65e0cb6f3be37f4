"""Attention of a whole prompt in bf16, on processors that multiply bf16 themselves.

Four rows of queries at a time, which share what is loaded of keys and values: their scores over all keys they see, a
softmax, and the weighted sum of values, which stays in registers from the first key to the last. Keys and values are
first put in the order in which one instruction takes them: two values of 16 keys side by side, and two keys' values.

Shapes: B batch, T queries, H query heads, K kv heads, G = H / K, S keys, D and V values of a key and a value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.attention import LOWEST, capped, softmax
from minillm.ops.cpu.loops.dots import dot_pair
from minillm.ops.cpu.loops.jit import aligned, array, inline, kernel, parallel
from minillm.ops.cpu.loops.vector import LANES, load, store, zeros

ROWS = 4
KEYS = 32  # at a time: with fewer sums under way each would wait for the one before
WIDTH = 64  # values of a head that are summed up at once: four registers for each row


@parallel
def _arrange(k: Any, v: Any, sizes: Any, k_packed: Any, v_packed: Any) -> None:
    """Keys as `[B K, S / 16, D / 2, 16, 2]`, values as `[B K, S / 2, V, 2]`; what lies behind the last key is zero."""
    keys, k_size, v_size, k_lane, v_lane, k_stride, v_stride = sizes
    padded = -(-keys // KEYS) * KEYS
    for each in prange(len(k_packed) // (padded * k_size)):
        lane = np.int64(each)
        for s in range(padded):
            there = s < keys
            at = lane * padded * k_size + s // LANES * LANES * k_size + s % LANES * 2
            for d in range(k_size):
                k_packed[at + d // 2 * 2 * LANES + d % 2] = k[lane * k_lane + s * k_stride + d] if there else 0
            at = lane * padded * v_size + s // 2 * 2 * v_size + s % 2
            for d in range(v_size):
                v_packed[at + 2 * d] = v[lane * v_lane + s * v_stride + d] if there else 0


@inline
def _scores(k: Any, at: int, q: Any, rows: Any, size: int, scores: Any, first: int, end: int, stride: int) -> None:
    """scores[r * stride + s] of the four rows for s from `first` to `end`, multiples of 32."""
    one, two, three, four = rows[0], rows[1], rows[2], rows[3]
    for s in range(first, end, KEYS):
        a, b, c, d, e, f, g, h = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
        place, other = at + s * size, at + (s + LANES) * size
        for i in range(0, size, 2):
            step = LANES * i
            a, e = dot_pair(a, k, place + step, q, one + i), dot_pair(e, k, other + step, q, one + i)
            b, f = dot_pair(b, k, place + step, q, two + i), dot_pair(f, k, other + step, q, two + i)
            c, g = dot_pair(c, k, place + step, q, three + i), dot_pair(g, k, other + step, q, three + i)
            d, h = dot_pair(d, k, place + step, q, four + i), dot_pair(h, k, other + step, q, four + i)
        for r, (x, y) in enumerate(((a, e), (b, f), (c, g), (d, h))):
            store(scores, r * stride + s, x)
            store(scores, r * stride + s + LANES, y)


@inline
def _weighted(p: Any, stride: int, v: Any, at: int, size: int, first: int, end: int, sums: Any) -> None:
    """sums[r * 64 : r * 64 + 64] of two of the rows: their weights times 64 values of each key."""
    a, b, c, d, e, f, g, h = (zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    for s in range(first, end, 2):
        place = at + s * size
        a = dot_pair(a, v, place, p, s)
        b = dot_pair(b, v, place + 2 * LANES, p, s)
        c = dot_pair(c, v, place + 4 * LANES, p, s)
        d = dot_pair(d, v, place + 6 * LANES, p, s)
        e = dot_pair(e, v, place, p, stride + s)
        f = dot_pair(f, v, place + 2 * LANES, p, stride + s)
        g = dot_pair(g, v, place + 4 * LANES, p, stride + s)
        h = dot_pair(h, v, place + 6 * LANES, p, stride + s)
    for i, x in enumerate((a, b, c, d, e, f, g, h)):
        store(sums, LANES * i, x)


@parallel
def _attend(
    q: Any, k: Any, v: Any, first: Any, last: Any, offset: int, sizes: Any, scale: Any, softcap: Any, y: Any
) -> None:
    steps, heads, kv_heads, k_size, v_size, keys = sizes
    group, padded = heads // kv_heads, -(-keys // KEYS) * KEYS
    tiles = -(-steps * group // ROWS)
    for each in prange(len(first) // steps * kv_heads * tiles):
        task = np.int64(each)
        lane, tile = task // tiles, tiles - 1 - task % tiles
        b, h = lane // kv_heads, lane % kv_heads
        scores, weights = aligned(ROWS * padded, np.float32), aligned(ROWS * padded, q.dtype)
        sums, rows, begin, end = aligned(2 * WIDTH, np.float32), np.empty(ROWS, np.int64), keys, 0
        for r in range(ROWS):
            row = min(tile * ROWS + r, steps * group - 1)
            query = b * steps + row // group
            rows[r] = (query * heads + h * group + row % group) * k_size
            begin, end = min(begin, first[query] - offset), max(end, last[query] + 1 - offset)
        begin, end = begin // KEYS * KEYS, -(-end // KEYS) * KEYS
        _scores(k, lane * padded * k_size, q, rows, k_size, scores, begin, end, padded)
        factors = np.empty(ROWS, np.float32)
        for r in range(ROWS):
            query = rows[r] // k_size // heads
            low, high = first[query] - offset, last[query] + 1 - offset
            capped(scores, r * padded + begin, r * padded + end, scale, softcap)
            for s in range(begin, low):
                scores[r * padded + s] = LOWEST
            for s in range(high, end):
                scores[r * padded + s] = LOWEST
            factors[r] = softmax(scores, r * padded + begin, r * padded + end)[1]
            for s in range(begin, end, LANES):
                store(weights, r * padded + s, load(scores, r * padded + s))
        for part in range(0, v_size, WIDTH):
            for r in range(0, ROWS, 2):
                p = weights[r * padded : (r + 2) * padded]
                _weighted(p, padded, v, lane * padded * v_size + 2 * part, v_size, begin, end, sums)
                for i in range(2):
                    to = rows[r + i] // k_size * v_size + part
                    for d in range(0, WIDTH, LANES):
                        store(y, to + d, load(sums, i * WIDTH + d) / factors[r + i])


@kernel
def attention(
    q_at: int, k_at: int, v_at: int, y_at: int, first_at: int, last_at: int, batch: int, sizes: Any, strides: Any,
    offset: int, scale: Any, softcap: Any, like: Any,
) -> None:  # fmt: skip
    """y `[B, T, H, V]` of q `[B, T, H, D]` over the keys of positions first[b, t] to last[b, t], key 0 being that of
    `offset`. sizes are T, H, K, D, V and S; strides the distances of two heads, keys and values, and of the values'."""
    steps, heads, kv_heads, k_size, v_size, keys = sizes
    k_lane, v_lane, k_stride, v_stride = strides
    lanes, padded, whole = batch * kv_heads, -(-keys // KEYS) * KEYS, np.empty(0, np.int64)
    k_packed, v_packed = aligned(lanes * padded * k_size, like.dtype), aligned(lanes * padded * v_size, like.dtype)
    k, v = array(k_at, lanes * k_lane, like), array(v_at, lanes * v_lane, like)
    _arrange(k, v, (keys, k_size, v_size, k_lane, v_lane, k_stride, v_stride), k_packed, v_packed)
    q, y = array(q_at, batch * steps * heads * k_size, like), array(y_at, batch * steps * heads * v_size, like)
    first, last = array(first_at, batch * steps, whole), array(last_at, batch * steps, whole)
    _attend(q, k_packed, v_packed, first, last, offset, sizes, scale, softcap, y)
