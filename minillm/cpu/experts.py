"""A few tokens through their experts: two products for each token and each expert that it chose, none of them gathered.

Shapes: N tokens, k picks of each, P = N k, H hidden size, F intermediate size, E experts. Matrices as in `products.py`,
those of all experts one under the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minillm.cpu.jit import aligned, array, kernel, parallel
from minillm.cpu.pointwise import activated
from minillm.cpu.products import matrix, prepare, products
from minillm.cpu.vector import number, rounded


@parallel
def _into(m: Any, x: Any, bias: Any, picks: Any, top_k: int, hidden: int, activation: Any, inner: int, y: Any) -> None:
    """y `[P, F]` = act(gate x) * up x, gate and up being rows e 2F + f and e 2F + F + f of the matrix."""
    pairs = (inner + 1) // 2
    for j in prange(len(picks) * pairs):
        p, f = np.int64(j) // pairs, np.int64(j) % pairs * 2
        both = min(f + 1, inner - 1)
        gate = picks[p] * 2 * inner
        rows = (gate + f, gate + both, gate + inner + f, gate + inner + both)
        values = products(m, rows, x, p // top_k, hidden)
        for k in range(both - f + 1):
            one, other = values[k], values[2 + k]
            if len(bias):
                one += number(bias[rows[k]])
                other += number(bias[rows[2 + k]])
            y[p * inner + f + k] = rounded(activated(one, other, activation), y)


@parallel
def _out_of(m: Any, x: Any, bias: Any, picks: Any, inner: int, hidden: int, y: Any) -> None:
    """y `[P, H]` = down x, down being rows e H … e H + H - 1 of the matrix."""
    fours = -(-hidden // 4)
    for j in prange(len(picks) * fours):
        p, h = np.int64(j) // fours, np.int64(j) % fours * 4
        first, last = picks[p] * hidden + h, picks[p] * hidden + hidden - 1
        values = products(m, (first, min(first + 1, last), min(first + 2, last), min(first + 3, last)), x, p, inner)
        for k in range(min(4, hidden - h)):
            y[p * hidden + h + k] = values[k] + number(bias[first + k]) if len(bias) else values[k]


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
