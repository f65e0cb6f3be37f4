"""Sums of products of 32 numbers at a time, for each type that plain weights have: what `products.py` repeats.

Where the processor multiplies bf16 itself (AVX512-BF16), 32 products are one instruction, and x stays bf16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from minillm.ops.cpu.loops.vector import (
    FLOAT,
    FLOATS,
    INT,
    LANES,
    SHORT,
    ask,
    constant,
    floats,
    floats_at,
    fused,
    intrinsic,
    read,
    same,
)

NATIVE_BF16 = "avx512bf16" in {name for name, has in binding.get_host_cpu_features().items() if has}


class Bfloat(ir.Type):
    """bf16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bfloat)

    def __hash__(self) -> int:
        return hash(Bfloat)


SHORTS, BFLOATS = ir.VectorType(SHORT, 2 * LANES), ir.VectorType(Bfloat(), 2 * LANES)


@intrinsic
def dot32(typing: Any, sums: Any, w: Any, at: Any, x: Any, start: Any) -> Any:
    """sums + the products of w[at : at + 32] and x[start : start + 32], two into each place. x is float32, or where
    the processor has NATIVE_BF16 both are bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        _, kind, _, x_kind, _ = signature.args
        sums, w, at, x, start = given
        if x_kind.dtype == types.uint16:
            x_part = read(context, builder, x_kind, x, start, SHORT, 32)
            return native_pairs(builder, sums, read(context, builder, kind, w, at, SHORT, 32), x_part)
        for offset in (0, LANES):
            places = (builder.add(each, each.type(offset)) for each in (at, start))
            w_part, x_part = (
                floats_at(context, builder, *each, place)
                for each, place in zip(((kind, w), (x_kind, x)), places, strict=True)
            )
            sums = fused(builder, w_part, x_part, sums)
        return sums

    return floats(floats, w, types.intp, x, types.intp), generate


@intrinsic
def prefetch(typing: Any, array: Any, at: Any) -> Any:
    """`ask`, of array[at]."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        ask(context, builder, signature.args[0], given[0], given[1])
        return context.get_dummy_value()

    return types.none(array, types.intp), generate


def native_pairs(builder: Any, total: Any, x: Any, y: Any) -> Any:
    """total[l] + x[2l] y[2l] + x[2l + 1] y[2l + 1] for 32 bf16 numbers each: AVX-512's own instruction."""

    kind = ir.FunctionType(FLOATS, [FLOATS, BFLOATS, BFLOATS])
    call = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(call, [total, builder.bitcast(x, BFLOATS), builder.bitcast(y, BFLOATS)])


@intrinsic
def dot_pair(typing: Any, sums: Any, w: Any, at: Any, x: Any, start: Any) -> Any:
    """sums[l] + w[at + 2 l] x[start] + w[at + 2 l + 1] x[start + 1], all bf16; for a processor with NATIVE_BF16."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        _, kind, _, x_kind, _ = signature.args
        sums, w, at, x, start = given
        pair = builder.extract_element(read(context, builder, x_kind, x, start, INT, 1), INT(0))
        nothing = ir.Constant(ir.VectorType(INT, LANES), ir.Undefined)
        pairs = builder.shuffle_vector(builder.insert_element(nothing, pair, INT(0)), nothing, same(INT, 0))
        return native_pairs(builder, sums, read(context, builder, kind, w, at, SHORT, 32), pairs)

    return floats(floats, w, types.intp, x, types.intp), generate


@intrinsic
def totals(typing: Any, array: Any, start: Any) -> Any:
    """The sums of 16 rows of 16 floats, array[start : start + 256], one in each place: by halves, as `total` has them,
    but of two rows at a time."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind, width = signature.args[0], LANES
        rows = [
            (
                read(context, builder, kind, given[0], builder.add(given[1], given[1].type(LANES * i)), FLOAT),
                [i] * LANES,
            )
            for i in range(LANES)
        ]
        while width > 1:
            width //= 2
            rows = [_halved(builder, width, *two) for two in zip(rows[::2], rows[1::2], strict=True)]
        ((vector, whose),) = rows
        return builder.shuffle_vector(vector, vector, constant(INT, [whose.index(i) for i in range(LANES)]))

    return floats(array, types.intp), generate


def _halved(builder: Any, width: int, one: Any, other: Any) -> Any:
    """Two vectors, and whose sum each place is a part of, as one: in each stretch of 2 `width` places, which belong to
    one row, the first half is added to the second."""
    (x, of_x), (y, of_y) = one, other
    low = [start + i for start in range(0, LANES, 2 * width) for i in range(width)]
    order = [*low, *(LANES + place for place in low)]
    total = builder.fadd(
        builder.shuffle_vector(x, y, constant(INT, order)),
        builder.shuffle_vector(x, y, constant(INT, [place + width for place in order])),
    )
    return total, [of_x[place] for place in low] + [of_y[place] for place in low]
