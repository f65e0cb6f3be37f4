"""A few tokens through their experts, as `experts.py`, with matrices in tiles (`tiles.py`), those of all experts one
behind the other.

Shapes: N tokens, k picks of each, P = N k, H hidden size, F intermediate size, E experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.jit import aligned, array, array_of, function, inline, kernel, parallel, threads
from minillm.ops.cpu.loops.pointwise import activated
from minillm.ops.cpu.loops.tiles.dots import multiply_rows
from minillm.ops.cpu.loops.tiles.floats import multiply_picked, widened_rows
from minillm.ops.cpu.loops.tiles.products import less_sums, of_row, of_tile, prepared, put, scaled
from minillm.ops.cpu.loops.tiles.rows import laid
from minillm.ops.cpu.loops.tiles.scales import NATURAL, grouping, places, room
from minillm.ops.cpu.loops.tiles.whole import CHUNK
from minillm.ops.cpu.loops.vector import LANES, number, rounded


@parallel
def _multiply(
    x: Any, taken: Any, powers: Any, sums: Any, at: Any, form: Any, picks: Any, memory: Any, y: Any, wanted: Any
) -> None:  # fmt: skip
    """y fp32 `[P, O]`: for pick p matrix picks[p] times row p // top_k of x."""
    (top_k, outputs, runs), (bits, counts, kinds, sizes) = wanted, form
    x_at, taken_at, powers_at, sums_at = x.ctypes.data, taken.ctypes.data, powers.ctypes.data, sums.ctypes.data
    memory_at = memory.ctypes.data
    tiles, groups, chunks = -(-outputs // LANES), counts[0] if len(sums) else 0, sizes[0]
    count = len(picks) * tiles
    for each in prange(runs):
        run, no_bias = np.int64(each), array_of(memory_at, 0, np.float32)
        made = places(memory_at, run, counts, chunks)
        for item in range(run * count // runs, (run + 1) * count // runs):
            p, place = item // tiles, item % tiles
            tile, r = picks[p] * tiles + place, p // top_k
            scales = scaled(at, kinds, tile, counts, made)
            of_x = of_row(x_at, taken_at, powers_at, r, chunks)
            y_of_tile = (less_sums(made, sums_at, r, groups),)
            (value,) = multiply_rows(bits, of_tile(at, tile, sizes), of_x, sizes, scales, y_of_tile)
            put(value, y, p * outputs + place * LANES, no_bias, place * LANES, outputs, made, scales[1])


@function
def _products(x: Any, rows: int, inputs: int, at: Any, given: Any, picks: Any, top_k: int, outputs: int) -> Any:
    bits, group, span, zero, kind, factor_kind, steps, high_steps, _ = given
    chunks, (group, counts) = -(-inputs // CHUNK), grouping(group, span, inputs)
    form = bits, counts, (kind, factor_kind, NATURAL), (chunks, counts[0], group, steps, high_steps)
    x, taken, powers, sums = prepared(x, rows, at, zero, group, counts[0])
    y = aligned(len(picks) * outputs, np.float32)
    runs = np.int64(threads())
    _multiply(x, taken, powers, sums, at, form, picks, room(counts, chunks, runs), y, (top_k, outputs, runs))
    return y


@function
def _of_floats(x: Any, rows: int, inputs: int, at: Any, given: Any, picks: Any, top_k: int, outputs: int) -> Any:
    form, counts, kinds = laid(inputs, given)
    y, runs = aligned(len(picks) * outputs, np.float32), np.int64(threads())
    memory = room(counts, form[3], runs)
    wide = widened_rows(x, rows, form[3])
    multiply_picked(at, form, counts, kinds, (top_k, outputs, runs), wide, picks, memory, y)
    return y


@inline
def _results(
    x: Any, rows: int, inputs: int, matrix: Any, picks: Any, top_k: int, outputs: int, in_bytes: bool
) -> Any:  # fmt: skip
    """fp32 `[P, O]`."""
    if in_bytes:
        return _products(x, rows, inputs, matrix[0], matrix[1], picks, top_k, outputs)
    return _of_floats(x, rows, inputs, matrix[0], matrix[1], picks, top_k, outputs)


@function
def _between(pairs: Any, bias: Any, picks: Any, inner: int, activation: Any, y: Any) -> None:
    """y `[P, F]` = act(gate) * up of pairs `[P, 2F]`."""
    for p in range(len(picks)):
        for f in range(inner):
            at, row = 2 * p * inner + f, 2 * picks[p] * inner + f
            gate, up = pairs[at], pairs[at + inner]
            if len(bias):
                gate, up = gate + number(bias[row]), up + number(bias[row + inner])
            y[p * inner + f] = rounded(activated(gate, up, activation), y)


@kernel
def experts(
    x_at: int, picks_at: int, weights_at: int, y_at: int, gate_up: Any, down: Any, biases: Any, sizes: Any,
    activation: Any, in_bytes: bool, like: Any,
) -> None:  # fmt: skip
    """y `[N, H]`: the sum of weights[n, k] times expert picks[n, k] of x[n], in fp32. gate_up and down are addresses
    and form of matrices as `tiles.linear` takes them, `[E, …]`; biases the address and length of either, sizes N, k, H
    and F; x goes through bytes, or as fp32."""
    tokens, top_k, hidden, inner = sizes
    count = tokens * top_k
    picks, weights = array(picks_at, count, np.empty(0, np.int64)), array(weights_at, count, np.empty(0, np.float32))
    inner_bias, outer_bias = array(biases[0], biases[1], like), array(biases[2], biases[3], like)
    x, y = array(x_at, tokens * hidden, like), array(y_at, tokens * hidden, like)
    pairs = _results(x, tokens, hidden, gate_up, picks, top_k, 2 * inner, in_bytes)
    between = aligned(count * inner, like.dtype)
    _between(pairs, inner_bias, picks, inner, activation, between)
    results = _results(between, count, inner, down, picks, 1, hidden, in_bytes)
    for n in range(tokens):
        for h in range(hidden):
            value = np.float32(0)
            for p in range(n * top_k, n * top_k + top_k):
                of_bias = number(outer_bias[picks[p] * hidden + h]) if len(outer_bias) else np.float32(0)
                value += weights[p] * (results[p * hidden + h] + of_bias)
            y[n * hidden + h] = rounded(value, y)
