"""Matrices of e4m3 with factors of rows (`weights/fp8.py`): multiplied with a few rows of x in fp32, or written out.

The bits of an e4m3 number, seven places higher and its sign apart, are an fp16 that is 2^8 times smaller, subnormal
numbers too; the largest of either sign is no number. A product takes numbers as these fp16, and makes up for it with
the factor of their group; whether one was no number is looked at once for a row.

Shapes: R rows of x, I inputs, O outputs, G groups of `width` columns that share a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import get_or_insert_function
from numba.np.arrayobj import make_array

from minillm.ops.cpu.loops.jit import aligned, array, function, inline, kernel, parallel
from minillm.ops.cpu.loops.vector import (
    BYTE,
    FLOAT,
    FLOATS,
    HALF,
    INT,
    LANES,
    SHORT,
    ask,
    constant,
    floats,
    fused,
    intrinsic,
    load,
    number,
    read,
    rounded,
    same,
    splat,
    store,
    total,
    zeros,
)

BLOCK = 4  # rows of W that a thread takes at a time
TOGETHER = 4  # rows of x for which numbers are widened once
WIDE, HALF_WIDE = 64, 32  # numbers that a step takes
AHEAD = 4096  # bytes before a number is read that it is asked for


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


def _adding(width: int) -> Any:
    """What adds to the sums of R rows of x the products of `width` numbers, 2^8 times smaller than they are; behind the
    sums is the largest byte without its sign that was met in each place."""

    @intrinsic
    def add(typing: Any, sums: Any, w: Any, at: Any, x: Any, start: Any, stride: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            sums, w, at, x, start, stride = given
            (_, w_kind, _, x_kind, _, _), rows = signature.args, len(signature.return_type) - 1
            ask(context, builder, w_kind, w, builder.add(at, at.type(AHEAD)))
            raw = read(context, builder, w_kind, w, at, BYTE, width)
            words = builder.shl(builder.sext(raw, ir.VectorType(SHORT, width)), same(SHORT, 7, width))
            words = builder.and_(words, same(SHORT, -0x4080, width))  # the sign, and seven bits below the next place
            halves = builder.bitcast(words, ir.VectorType(HALF, width))
            parts = [
                builder.fpext(builder.shuffle_vector(halves, halves, constant(INT, range(n, n + LANES))), FLOATS)
                for n in range(0, width, LANES)
            ]
            found = []
            for r in range(rows):
                place = builder.add(start, builder.mul(stride, stride.type(r)))
                of_x = [
                    read(context, builder, x_kind, x, builder.add(place, place.type(LANES * n)), FLOAT)
                    for n in range(len(parts))
                ]
                value = builder.extract_value(sums, r)
                for n in range(0, len(parts), 2):
                    pair = fused(builder, parts[n], of_x[n], builder.fmul(parts[n + 1], of_x[n + 1]))
                    value = builder.fadd(value, pair)
                found.append(value)
            most = builder.bitcast(builder.extract_value(sums, rows), ir.VectorType(BYTE, WIDE))
            low = builder.and_(raw, same(BYTE, 127, width))
            if width < WIDE:
                low = builder.shuffle_vector(low, low, constant(INT, [n % width for n in range(WIDE)]))
            most = builder.select(builder.icmp_unsigned(">", low, most), low, most)
            return context.make_tuple(builder, signature.return_type, [*found, builder.bitcast(most, FLOATS)])

        return sums(sums, w, types.intp, x, types.intp, types.intp), generate

    return add


_add_wide, _add_half = _adding(WIDE), _adding(HALF_WIDE)


@intrinsic
def _scaled(typing: Any, y: Any, sums: Any, factor: Any) -> Any:
    """y and sums times a factor, of R rows; what was met stays behind them."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        y, sums, factor = given
        pairs = [[builder.extract_value(each, r) for each in (sums, y)] for r in range(len(signature.return_type))]
        found = [fused(builder, one, factor, other) for one, other in pairs[:-1]]
        return context.make_tuple(builder, signature.return_type, [*found, pairs[-1][0]])

    return y(y, sums, factor), generate


@intrinsic
def _anew(typing: Any, y: Any) -> Any:
    """Sums of nothing; what was met stays."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        rows = len(signature.return_type) - 1
        met = builder.extract_value(given[0], rows)
        return context.make_tuple(builder, signature.return_type, [same(FLOAT, 0.0)] * rows + [met])

    return y(y), generate


@intrinsic
def _none_met(typing: Any, met: Any) -> Any:
    """0, or no number where one of the bytes was none."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        all_bytes = ir.VectorType(BYTE, WIDE)
        kind = ir.FunctionType(BYTE, [all_bytes])
        most = get_or_insert_function(builder.module, kind, "llvm.vector.reduce.umax.v64i8")
        none = builder.icmp_unsigned("==", builder.call(most, [builder.bitcast(given[0], all_bytes)]), BYTE(127))
        return builder.select(none, FLOAT(float("nan")), FLOAT(0.0))

    return types.float32(floats), generate


@function
def _products(w: Any, scale: Any, row: int, sizes: Any, near: Any, x: Any, start: int, stride: int, y: Any) -> Any:
    """y, which are zeros, and the sums of row `row` of the matrix with R rows of x."""
    inputs, width, groups = sizes
    for g in range(groups):
        first, last, sums = g * width, min((g + 1) * width, inputs), _anew(y)
        at, whole = row * inputs, first + (last - first) // WIDE * WIDE
        for i in range(first, whole, WIDE):
            sums = _add_wide(sums, w, at + i, x, start + i, stride)
        if last - whole >= HALF_WIDE:
            sums, whole = _add_half(sums, w, at + whole, x, start + whole, stride), whole + HALF_WIDE
        if whole < last:
            for i in range(HALF_WIDE):
                near[i] = w[at + whole + i] if whole + i < last else 0
            sums = _add_half(sums, near, 0, x, start + whole, stride)
        y = _scaled(y, sums, splat(scale[row * groups + g] * np.float32(256)))
    return y


@parallel
def _multiply(w: Any, scale: Any, sizes: Any, x: Any, rows: int, bias: Any, y: Any) -> None:
    """y `[R, O]`; rows of x are filled up with zeros."""
    stride = len(x) // rows
    outputs = len(w) // sizes[0]
    for block in prange(-(-outputs // BLOCK)):
        near, together = np.zeros(HALF_WIDE, np.uint8), rows // TOGETHER * TOGETHER
        for o in range(BLOCK * block, min(BLOCK * block + BLOCK, outputs)):
            for r in range(0, together, TOGETHER):
                none = (zeros(), zeros(), zeros(), zeros(), zeros())
                a, b, c, d, met = _products(w, scale, o, sizes, near, x, r * stride, stride, none)
                for k, each in enumerate((a, b, c, d)):
                    _put(total(each) + _none_met(met), bias, o, y, (r + k) * outputs + o)
            for r in range(together, rows):
                each, met = _products(w, scale, o, sizes, near, x, r * stride, stride, (zeros(), zeros()))
                _put(total(each) + _none_met(met), bias, o, y, r * outputs + o)


@inline
def _put(value: Any, bias: Any, o: int, y: Any, at: int) -> None:
    y[at] = rounded(value + number(bias[o]) if len(bias) else value, y)


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
    # A group's last step may read behind a row, where zeros must not meet what is no number.
    narrow, stride = array(x_at, rows * inputs, like), (-(-inputs // HALF_WIDE) + 1) * HALF_WIDE
    x = aligned(rows * stride, np.float32)
    for r in range(rows):
        for i in range(stride):
            x[r * stride + i] = number(narrow[r * inputs + i]) if i < inputs else np.float32(0)
    bias, y = array(bias_at, outputs if bias_at else 0, like), array(y_at, rows * outputs, like)
    _multiply(w, scale, of_row, x, rows, bias, y)
