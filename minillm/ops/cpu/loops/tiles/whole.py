"""Rows of x as whole numbers of 16 bits, for the instruction that multiplies bytes (AVX512-VNNI), in chunks of 32.

A chunk of x is n p, p a power of two that makes the largest n at most 32512 = 127 * 256, and n = 256 h + l two bytes
with a sign. A bf16 number of at least 1/127 of the largest stays exact; none is wrong by more than p / 2, 2^-14.98 of
the largest. Integer sums are exact in any order.

Shapes: R rows, C chunks of a row. h and l int8 `[R, C, 2, 32]`, p fp32 `[R, C]`, sums of n of half a chunk each int32
`[R, C, 2]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.np.arrayobj import make_array

from minillm.ops.cpu.loops.jit import aligned, function, inline
from minillm.ops.cpu.loops.vector import (
    BYTE,
    FLOATS,
    INT,
    LANES,
    intrinsic,
    larger,
    largest,
    load,
    madd,
    number,
    same,
    splat,
    store,
    total,
    two_to,
    zeros,
)

VNNI = bool(binding.get_host_cpu_features().get("avx512vnni"))
CHUNK = 32  # columns with one power of two
MOST = 32512  # 127 * 256: both bytes have room for it
INTS = ir.VectorType(INT, LANES)


@intrinsic
def _write(typing: Any, parts: Any, start: Any, x: Any) -> Any:
    """16 floats, rounded, as the high bytes from parts[start] on and the low ones 32 further on; returns their sum."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        parts, start, x = given
        rint = get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS]), "llvm.rint.v16f32")
        n = builder.fptosi(builder.call(rint, [x]), INTS)
        high = builder.ashr(builder.add(n, same(INT, 128)), same(INT, 8))
        low = builder.sub(n, builder.shl(high, same(INT, 8)))
        data = make_array(signature.args[0])(context, builder, parts).data
        for numbers, offset in ((high, 0), (low, CHUNK)):
            pointer = builder.gep(data, [builder.add(start, start.type(offset))])
            value = builder.trunc(numbers, ir.VectorType(BYTE, LANES))
            builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=1)
        reduce = get_or_insert_function(builder.module, ir.FunctionType(INT, [INTS]), "llvm.vector.reduce.add.v16i32")
        return builder.call(reduce, [n])

    return types.int32(parts, types.intp, x), generate


@inline
def power_of(x: Any, at: int) -> Any:
    """p of a chunk of x; not a number where the chunk has what is infinite or none."""
    most, finite = zeros(), zeros()
    for i in range(at, at + CHUNK, LANES):
        values = load(x, i)
        most = larger(values, larger(zeros() - values, most))
        finite = madd(values, np.float32(0), finite)
    exponent = (np.float32(largest(most) * np.float32(2**15 / MOST)).view(np.int32) >> 23) - 126
    return two_to(np.float32(max(exponent - 15, -110))) + total(finite)


@function
def split(x: Any, rows: int) -> Any:
    """R rows of x as bytes, powers and sums; columns that are missing from the last chunk are zeros."""
    count = len(x) // rows
    chunks = -(-count // CHUNK)
    parts, row = aligned(rows * chunks * 2 * CHUNK, np.int8), aligned(chunks * CHUNK, np.float32)
    powers, sums = np.empty(rows * chunks, np.float32), np.empty(rows * chunks * 2, np.int32)
    for i in range(0, chunks * CHUNK, LANES):
        store(row, i, zeros())
    for r in range(rows):
        whole = count // LANES * LANES
        for i in range(0, whole, LANES):
            store(row, i, load(x, r * count + i))
        for i in range(whole, count):
            row[i] = number(x[r * count + i])
        for c in range(chunks):
            of_chunk = r * chunks + c
            power = power_of(row, c * CHUNK)
            powers[of_chunk], inverse = power, splat(np.float32(1) / power)
            for half in range(2):
                place = half * LANES
                values = load(row, c * CHUNK + place) * inverse
                sums[2 * of_chunk + half] = _write(parts, of_chunk * 2 * CHUNK + place, values)
    return parts, powers, sums


@inline
def sum_of(x: Any, r: int, first: int, last: int, chunks: int) -> Any:
    """The sum of half chunks first to last of a row of x."""
    _, powers, sums = x
    result = np.float32(0)
    for half in range(first, last):
        result += powers[r * chunks + half // 2] * np.float32(sums[2 * r * chunks + half])
    return result
