"""A few tokens through their experts: two products for each token and each expert that it chose, none of them gathered.

Shapes: N tokens, k picks of each, P = N k, H hidden size, F intermediate size, E experts. Matrices as in `products.py`,
those of all experts one under the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.jit import aligned, array, kernel, parallel
from minillm.ops.cpu.loops.pointwise import activated
from minillm.ops.cpu.loops.products import matrix, prepare, product
from minillm.ops.cpu.loops.vector import number, rounded


@parallel
def _into(m: Any, x: Any, bias: Any, picks: Any, top_k: int, hidden: int, activation: Any, inner: int, y: Any) -> None:
    """y `[P, F]` = act(gate x) * up x, gate and up being rows e 2F + f and e 2F + F + f of the matrix."""
    for j in prange(len(picks) * inner):
        p, f = np.int64(j) // inner, np.int64(j) % inner
        gate_row = picks[p] * 2 * inner + f
        up_row = gate_row + inner
        gate = product(m, gate_row, x, p // top_k, hidden)
        up = product(m, up_row, x, p // top_k, hidden)
        if len(bias):
            gate += number(bias[gate_row])
            up += number(bias[up_row])
        y[j] = rounded(activated(gate, up, activation), y)


@parallel
def _out_of(m: Any, x: Any, bias: Any, picks: Any, inner: int, hidden: int, y: Any) -> None:
    """y `[P, H]` = down x, down being rows e H … e H + H - 1 of the matrix."""
    for j in prange(len(y)):
        p = np.int64(j) // hidden
        row = picks[p] * hidden + np.int64(j) % hidden
        value = product(m, row, x, p, inner)
        y[j] = value + number(bias[row]) if len(bias) else value


@kernel
def experts(
    x_at: int, picks_at: int, weights_at: int, y_at: int, gate_up_at: Any, down_at: Any, biases: Any, sizes: Any,
    activation: Any, x_like: Any, w_like: Any,
) -> None:  # fmt: skip
    """y `[N, H]`: the sum of weights[n, k] times expert picks[n, k] of x[n], in fp32. Matrices as `matrix` takes them;
    biases has the address and length of either, sizes N, k, H and F."""
    tokens, top_k, hidden, inner = sizes
    count = tokens * top_k
    picks, weights = array(picks_at, count, np.empty(0, np.int64)), array(weights_at, count, np.empty(0, np.float32))
    inner_bias, outer_bias = array(biases[0], biases[1], x_like), array(biases[2], biases[3], x_like)
    gate_up, down, y = matrix(gate_up_at, w_like), matrix(down_at, w_like), array(y_at, tokens * hidden, x_like)
    x = prepare(array(x_at, tokens * hidden, x_like), tokens, gate_up)
    between = aligned(count * inner, x_like.dtype)
    _into(gate_up, x, inner_bias, picks, top_k, hidden, activation, inner, between)
    x = prepare(between, count, down)
    results = np.empty(count * hidden, np.float32)
    _out_of(down, x, outer_bias, picks, inner, hidden, results)
    for n in range(tokens):
        for h in range(hidden):
            value = np.float32(0)
            for k in range(top_k):
                value += weights[n * top_k + k] * results[(n * top_k + k) * hidden + h]
            y[n * hidden + h] = rounded(value, y)
