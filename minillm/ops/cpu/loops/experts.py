"""A few tokens through their experts: two products for each token and each expert that it chose, none of them gathered.

Shapes: N tokens, k picks of each, P = N k, H hidden size, F intermediate size, E experts. The matrices of all experts
lie one under the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.jit import aligned, array, kernel, parallel
from minillm.ops.cpu.loops.pointwise import activated
from minillm.ops.cpu.loops.products import dot, prepare
from minillm.ops.cpu.loops.vector import number, rounded


@parallel
def _into(w: Any, x: Any, bias: Any, picks: Any, top_k: int, hidden: int, activation: Any, inner: int, y: Any) -> None:
    """y `[P, F]` = act(gate x) * up x, gate and up being rows e 2F + f and e 2F + F + f of the matrix."""
    for j in prange(len(picks) * inner):
        p, f = np.int64(j) // inner, np.int64(j) % inner
        gate_row = picks[p] * 2 * inner + f
        up_row = gate_row + inner
        gate = dot(w, gate_row * hidden, x, p // top_k * hidden, hidden)
        up = dot(w, up_row * hidden, x, p // top_k * hidden, hidden)
        if len(bias):
            gate += number(bias[gate_row])
            up += number(bias[up_row])
        y[j] = rounded(activated(gate, up, activation), y)


@parallel
def _out_of(w: Any, x: Any, bias: Any, picks: Any, inner: int, hidden: int, y: Any) -> None:
    """y `[P, H]` = down x, down being rows e H … e H + H - 1 of the matrix."""
    for j in prange(len(y)):
        p = np.int64(j) // hidden
        row = picks[p] * hidden + np.int64(j) % hidden
        value = dot(w, row * inner, x, p * inner, inner)
        y[j] = value + number(bias[row]) if len(bias) else value


@kernel
def experts(
    x_at: int, picks_at: int, weights_at: int, gate_up_at: int, down_at: int, y_at: int, biases: Any, sizes: Any,
    activation: Any, x_like: Any, w_like: Any,
) -> None:  # fmt: skip
    """y `[N, H]`: the sum of weights[n, k] times expert picks[n, k] of x[n], in fp32. biases has the
    address and length of either, sizes N, k, H, F and E."""
    tokens, top_k, hidden, inner, number_of = sizes
    count = tokens * top_k
    picks, weights = array(picks_at, count, np.empty(0, np.int64)), array(weights_at, count, np.empty(0, np.float32))
    inner_bias, outer_bias = array(biases[0], biases[1], x_like), array(biases[2], biases[3], x_like)
    gate_up = array(gate_up_at, number_of * 2 * inner * hidden, w_like)
    down, y = array(down_at, number_of * hidden * inner, w_like), array(y_at, tokens * hidden, x_like)
    x = prepare(array(x_at, tokens * hidden, x_like), gate_up)
    between = aligned(count * inner, x_like.dtype)
    _into(gate_up, x, inner_bias, picks, top_k, hidden, activation, inner, between)
    x = prepare(between, down)
    results = np.empty(count * hidden, np.float32)
    _out_of(down, x, outer_bias, picks, inner, hidden, results)
    for n in range(tokens):
        for h in range(hidden):
            value = np.float32(0)
            for k in range(top_k):
                value += weights[n * top_k + k] * results[(n * top_k + k) * hidden + h]
            y[n * hidden + h] = rounded(value, y)
