"""The product of a few rows with one matrix, as a kernel. Shapes as in `products.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from minillm.cpu.jit import OPTIONS, array, kernel, overload, parallel
from minillm.cpu.products import prepare, product, tile
from minillm.cpu.vector import number, rounded

BLOCK = 4  # rows of W that a thread takes at a time
IN_CACHE = 8192  # values of x that stay in the fastest cache beside a row of W


@parallel
def _multiply(
    w: Any, scale: Any, zero: Any, group: int, x: Any, sums: Any, bias: Any, y: Any, rows: int, inputs: int
) -> None:
    outputs = len(y) // rows
    for block in prange(-(-outputs // BLOCK)):
        for o in range(BLOCK * block, min(BLOCK * block + BLOCK, outputs)):
            for r in range(rows):
                value = product(w, scale, zero, group, o, x, sums, r, inputs)
                y[r * outputs + o] = rounded(value + number(bias[o]) if len(bias) else value, y)


def _multiplied_in_tiles(w: Any, x: Any, bias: Any, y: Any, rows: int, inputs: int) -> bool:
    """Whether W is plain and x large enough for tiles to pay: then y is computed so."""
    raise NotImplementedError


@overload(_multiplied_in_tiles, jit_options=OPTIONS, strict=False)
def _in_tiles(w: Any, x: Any, bias: Any, y: Any, rows: Any, inputs: Any) -> Any:
    if w.dtype in (types.uint8, types.int8):
        return lambda w, x, bias, y, rows, inputs: False

    def multiplied(w: Any, x: Any, bias: Any, y: Any, rows: int, inputs: int) -> bool:
        fits = len(y) // rows % BLOCK == 0 and inputs % 64 == 0
        if fits and rows * inputs > IN_CACHE:
            _multiply_tiles(w, x, bias, y, rows, inputs)
        return fits and rows * inputs > IN_CACHE

    return multiplied


@parallel
def _multiply_tiles(w: Any, x: Any, bias: Any, y: Any, rows: int, inputs: int) -> None:
    outputs = len(y) // rows
    for block in prange(outputs // BLOCK):
        o = BLOCK * block
        for r in range(0, rows, 2):
            other = min(r + 1, rows - 1)
            pairs = tile(w, o * inputs, x, r * inputs, other * inputs, inputs)
            for row, values in ((r, pairs[0]), (other, pairs[1])):
                at = row * outputs + o
                for k in range(BLOCK):
                    y[at + k] = rounded(values[k] + number(bias[o + k]) if len(bias) else values[k], y)


@kernel
def linear(
    x_at: int, w_at: int, scale_at: int, zero_at: int, bias_at: int, y_at: int,
    rows: int, inputs: int, outputs: int, group: int, x_like: Any, w_like: Any,
) -> None:  # fmt: skip
    """y `[R, O]` of x `[R, I]` and W `[O, I]`; an address of 0 where there is no such array."""
    groups = -(-inputs // group) if group else 1
    y = array(y_at, rows * outputs, x_like)
    w = array(w_at, outputs * (inputs if group == 0 else (inputs + 1) // 2), w_like)
    scale = array(scale_at, outputs * groups if scale_at else 0, np.empty(0, np.float32))
    zero = array(zero_at, outputs * groups if zero_at else 0, np.empty(0, np.float32))
    bias = array(bias_at, outputs if bias_at else 0, x_like)
    x, sums = prepare(array(x_at, rows * inputs, x_like), rows, w, max(group, 1))
    if not _multiplied_in_tiles(w, x, bias, y, rows, inputs):
        _multiply(w, scale, zero, max(group, 1), x, sums, bias, y, rows, inputs)
