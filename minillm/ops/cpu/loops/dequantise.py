"""int8 and 4-bit matrices written out as numbers, for products with many rows. Formats as in `products.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types

from minillm.ops.cpu.loops.jit import INLINE, array, inline, kernel, overload, parallel
from minillm.ops.cpu.loops.products import matrix
from minillm.ops.cpu.loops.vector import (
    BYTE,
    FLOATS,
    INT,
    LANES,
    constant,
    floats,
    intrinsic,
    load,
    read,
    rounded,
    same,
    splat,
    store,
)


@intrinsic
def _nibbles(typing: Any, w: Any, at: Any) -> Any:
    """The 16 numbers of the 8 bytes from w[at] on, of each byte first the low half."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        numbers = read(context, builder, signature.args[0], given[0], given[1], BYTE, LANES // 2)
        twice = builder.shuffle_vector(numbers, numbers, constant(INT, [place // 2 for place in range(LANES)]))
        wide = builder.zext(twice, ir.VectorType(INT, LANES))
        halves = builder.lshr(wide, constant(INT, [place % 2 * 4 for place in range(LANES)]))
        return builder.uitofp(builder.and_(halves, same(INT, 15)), FLOATS)

    return floats(w, types.intp), generate


@inline
def _from_int8(m: Any, row: int, y: Any, inputs: int) -> None:
    w, _, _, factor, _ = m
    at, whole = row * inputs, inputs // LANES * LANES
    for i in range(at, at + whole, LANES):
        store(y, i, load(w, i) * splat(factor[row]))
    for i in range(at + whole, at + inputs):
        y[i] = rounded(np.float32(w[i]) * factor[row], y)


@inline
def _from_int4(m: Any, row: int, y: Any, inputs: int) -> None:
    w, scale, zero, factor, group = m
    at, to, groups = row * ((inputs + 1) // 2), row * inputs, -(-inputs // group)
    for g in range(groups):
        s = np.float32(scale[row * groups + g]) * factor[row]
        z = np.float32(zero[row * groups + g]) if len(zero) else np.float32(8)
        first, last = g * group, min((g + 1) * group, inputs)
        whole = first + (last - first) // LANES * LANES
        for i in range(first, whole, LANES):
            store(y, to + i, (_nibbles(w, at + i // 2) - splat(z)) * splat(s))
        for i in range(whole, last):
            q = (np.int32(w[at + i // 2]) >> (4 * (i % 2))) & 15
            y[to + i] = rounded((np.float32(q) - z) * s, y)


def _write_row(m: Any, row: int, y: Any, inputs: int) -> None:
    """y[row * I : (row + 1) * I] = row `row` of a quantised matrix."""
    raise NotImplementedError


@overload(_write_row, jit_options=INLINE, strict=False)
def _written(m: Any, row: Any, y: Any, inputs: Any) -> Any:
    write = _from_int8 if m[0].dtype == types.int8 else _from_int4
    return lambda m, row, y, inputs: write(m, row, y, inputs)


@parallel
def _write_rows(m: Any, y: Any, rows: int, inputs: int) -> None:
    for each in prange(rows):
        _write_row(m, np.int64(each), y, inputs)


@kernel
def dequantise(at: Any, y_at: int, rows: int, inputs: int, w_like: Any, y_like: Any) -> None:
    """y `[O, I]` = the matrix at `at`, of int8 or int4."""
    _write_rows(matrix(at, w_like), array(y_at, rows * inputs, y_like), rows, inputs)
