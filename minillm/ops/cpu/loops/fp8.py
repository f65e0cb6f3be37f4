"""Matrices of e4m3 with factors of rows (`weights/fp8.py`): a row is written out as fp32, for products with a few rows
of x, which it serves from the cache, and for all of the matrix.

The bits of an e4m3 number, seven places higher and its sign apart, are an fp16 that is 2^8 times smaller, subnormal
numbers too; the largest of either sign is no number.

Shapes: R rows of x, I inputs, O outputs, G groups of `width` columns that share a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.np.arrayobj import make_array

from minillm.ops.cpu.loops.jit import aligned, array, inline, kernel, parallel
from minillm.ops.cpu.loops.products import dot
from minillm.ops.cpu.loops.vector import (
    BYTE,
    FLOAT,
    FLOATS,
    HALF,
    LANES,
    SHORT,
    floats,
    intrinsic,
    load,
    number,
    rounded,
    same,
    splat,
    store,
)

BLOCK = 4  # rows of W that a thread takes at a time


def _as_floats(builder: Any, raw: Any) -> Any:
    """16 bytes as e4m3 has them."""
    wide = builder.zext(raw, ir.VectorType(SHORT, LANES))
    rest, sign = builder.and_(wide, same(SHORT, 127)), builder.and_(wide, same(SHORT, 128))
    bits = builder.or_(builder.shl(rest, same(SHORT, 7)), builder.shl(sign, same(SHORT, 8)))
    value = builder.fpext(builder.bitcast(bits, ir.VectorType(HALF, LANES)), FLOATS)
    none = builder.icmp_unsigned("==", rest, same(SHORT, 127))
    return builder.select(none, same(FLOAT, float("nan")), builder.fmul(value, same(FLOAT, 256.0)))


@intrinsic
def _e4m3(typing: Any, w: Any, start: Any) -> Any:
    """w[start : start + 16] as floats."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = builder.gep(make_array(signature.args[0])(context, builder, given[0]).data, [given[1]])
        kind = ir.VectorType(BYTE, LANES).as_pointer()
        return _as_floats(builder, builder.load(builder.bitcast(pointer, kind), align=1))

    return floats(w, types.intp), generate


@inline
def _write(w: Any, scale: Any, row: int, sizes: Any, near: Any, y: Any) -> None:
    """y[: I] = row `row` of the matrix; a last part of less than 16 columns goes through `near`."""
    inputs, width, groups = sizes
    for g in range(groups):
        first, last, factor = g * width, min((g + 1) * width, inputs), splat(scale[row * groups + g])
        whole = first + (last - first) // LANES * LANES
        for i in range(first, whole, LANES):
            store(y, i, _e4m3(w, row * inputs + i) * factor)
        if whole < last:
            for i in range(whole, last):
                near[i - whole] = w[row * inputs + i]
            store(y, whole, _e4m3(near, 0) * factor)


@parallel
def _write_rows(w: Any, scale: Any, sizes: Any, y: Any) -> None:
    inputs = sizes[0]
    outputs = len(w) // inputs
    for block in prange(-(-outputs // BLOCK)):
        near, values = np.zeros(LANES, np.uint8), aligned(inputs + LANES, np.float32)
        for o in range(BLOCK * block, min(BLOCK * block + BLOCK, outputs)):
            _write(w, scale, o, sizes, near, values)
            whole = inputs // LANES * LANES
            for i in range(0, whole, LANES):
                store(y, o * inputs + i, load(values, i))
            for i in range(whole, inputs):
                y[o * inputs + i] = rounded(values[i], y)


@parallel
def _multiply(w: Any, scale: Any, sizes: Any, x: Any, bias: Any, y: Any) -> None:
    inputs = sizes[0]
    rows, outputs = len(x) // inputs, len(w) // inputs
    for block in prange(-(-outputs // BLOCK)):
        near, values = np.zeros(LANES, np.uint8), aligned(inputs + LANES, np.float32)
        for o in range(BLOCK * block, min(BLOCK * block + BLOCK, outputs)):
            _write(w, scale, o, sizes, near, values)
            for r in range(rows):
                value = dot(values, 0, x, r * inputs, inputs)
                y[r * outputs + o] = rounded(value + number(bias[o]) if len(bias) else value, y)


@inline
def _matrix(at: Any, outputs: int, inputs: int, width: int) -> Any:
    """W, its factors, and I, the width of a group and G. `at` is the addresses of both."""
    width = width if width else inputs
    groups = -(-inputs // width)
    w, scale = array(at[0], outputs * inputs, np.empty(0, np.uint8)), np.empty(0, np.float32)
    scale = array(at[1], outputs * groups, scale)
    return w, scale, (inputs, width, groups)


@kernel
def dequantise(at: Any, y_at: int, sizes: Any, like: Any) -> None:
    """y `[O, I]` = the matrix at `at`; sizes are O, I and the width of a group, 0 for one in a row."""
    w, scale, of_row = _matrix(at, sizes[0], sizes[1], sizes[2])
    _write_rows(w, scale, of_row, array(y_at, len(w), like))


@kernel
def linear(x_at: int, at: Any, bias_at: int, y_at: int, rows: int, sizes: Any, like: Any) -> None:
    """y `[R, O]` of x `[R, I]`, in fp32."""
    outputs, inputs, width = sizes
    w, scale, of_row = _matrix(at, outputs, inputs, width)
    narrow, x = array(x_at, rows * inputs, like), aligned(rows * inputs, np.float32)
    for i in range(rows * inputs):
        x[i] = number(narrow[i])
    bias, y = array(bias_at, outputs if bias_at else 0, like), array(y_at, rows * outputs, like)
    _multiply(w, scale, of_row, x, bias, y)
