"""The product of a few rows with one matrix, as a kernel. Shapes as in `products.py`."""

from __future__ import annotations

from typing import Any

from numba import prange

from minillm.ops.cpu.loops.jit import array, kernel, parallel
from minillm.ops.cpu.loops.products import prepare, read_once, tile
from minillm.ops.cpu.loops.vector import number, rounded

BLOCK = 4  # rows of W that a thread takes at a time
IN_CACHE = 8192  # values of x that stay in the fastest cache beside a row of W
MANY = 6  # rows of x whose arithmetic takes longer than reading W


@parallel
def _multiply(w: Any, x: Any, bias: Any, y: Any, rows: int, inputs: int) -> None:
    outputs = len(y) // rows
    for block in prange(-(-outputs // BLOCK)):
        for o in range(BLOCK * block, min(BLOCK * block + BLOCK, outputs)):
            for r in range(rows):
                value = read_once(w, o * inputs, x, r * inputs, inputs)
                y[r * outputs + o] = rounded(value + number(bias[o]) if len(bias) else value, y)


@parallel
def _multiply_tiles(w: Any, x: Any, bias: Any, y: Any, rows: int, inputs: int) -> None:
    outputs = len(y) // rows
    for block in prange(outputs // BLOCK):
        o = BLOCK * block
        for r in range(0, rows, 2):
            other = min(r + 1, rows - 1)
            ahead = BLOCK + BLOCK * r // rows, BLOCK + BLOCK * (r + 2) // rows
            pairs = tile(w, o * inputs, x, r * inputs, other * inputs, inputs, ahead)
            for row, values in ((r, pairs[0]), (other, pairs[1])):
                at = row * outputs + o
                for k in range(BLOCK):
                    y[at + k] = rounded(values[k] + number(bias[o + k]) if len(bias) else values[k], y)


@kernel
def linear(x_at: int, w_at: int, bias_at: int, y_at: int, rows: int, inputs: int, outputs: int, like: Any) -> None:
    """y `[R, O]` of x `[R, I]` and W `[O, I]`; bias_at is 0 where there is none."""
    w, y = array(w_at, outputs * inputs, like), array(y_at, rows * outputs, like)
    bias = array(bias_at, outputs if bias_at else 0, like)
    x = prepare(array(x_at, rows * inputs, like), w)
    if outputs % BLOCK == 0 and inputs % 64 == 0 and (rows >= MANY or rows * inputs > IN_CACHE):
        _multiply_tiles(w, x, bias, y, rows, inputs)
    else:
        _multiply(w, x, bias, y, rows, inputs)
