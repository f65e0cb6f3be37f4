"""int8 and 4-bit weights times numbers of 16 bits, by an instruction that multiplies 64 bytes by 64 (AVX512-VNNI).

A block of 128 columns of x becomes whole numbers n = 256 h + l of two bytes each, times a power of two p that makes the
largest at most 32512. A bf16 number of at least 1/127 of the largest stays exact; no other is wrong by more than p / 2,
2^-14.98 of the largest. The instruction takes weights as bytes without a sign, q + z: z x is taken off for eight
columns at a time, by their sum. Integer sums are exact in any order, and large enough: 8 columns times 2^8 times 2^15.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import models, register_model
from numba.np.arrayobj import make_array

from minillm.ops.cpu.loops.jit import aligned, inline
from minillm.ops.cpu.loops.vector import (
    BYTE,
    FLOAT,
    FLOATS,
    INT,
    LANES,
    ask,
    constant,
    floats,
    intrinsic,
    larger,
    largest,
    load,
    madd,
    number,
    read,
    same,
    total,
    two_to,
    zeros,
)

VNNI = bool(binding.get_host_cpu_features().get("avx512vnni"))
BLOCK, HALF = 128, 64  # columns with one power of two, and those of them that one instruction takes
MOST = 32512  # 127 * 256: both bytes have room for it
INTS = ir.VectorType(INT, LANES)


class Ints(types.Type):
    """The type of a vector of 16 int32."""

    def __init__(self) -> None:
        super().__init__(name="ints")


ints = Ints()


@register_model(Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any):
        super().__init__(manager, kind, INTS)


def _read(context: Any, builder: Any, kind: Any, array: Any, start: Any, count: int, left: Any) -> Any:
    """`count` bytes of an array from `start` on; zeros in place of those after the first `left`, which are not read."""
    pointer = builder.gep(make_array(kind)(context, builder, array).data, [start])
    vector, whole = ir.VectorType(BYTE, count), left.type(count)
    ones = builder.lshr(left.type(-1), builder.sub(left.type(64), left))  # as many as are left
    some = builder.select(builder.icmp_signed(">", left, left.type(0)), ones, left.type(0))
    bits = builder.select(builder.icmp_signed("<", left, whole), some, left.type(-1))
    there = builder.bitcast(builder.trunc(bits, ir.IntType(count)), ir.VectorType(ir.IntType(1), count))
    kind = ir.FunctionType(vector, [pointer.type, INT, there.type, vector])
    call = get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{count}i8.p0")
    return builder.call(call, [pointer, INT(1), there, same(BYTE, 0, count)])


def _in_all(builder: Any, number: Any) -> Any:
    """An integer in all 16 places."""
    one = builder.insert_element(ir.Constant(INTS, ir.Undefined), builder.trunc(number, INT), INT(0))
    return builder.shuffle_vector(one, one, same(INT, 0))


def _dot(builder: Any, total: Any, w: Any, x: Any) -> Any:
    """total[l] + w[4 l] x[4 l] + … + w[4 l + 3] x[4 l + 3], w without a sign, x with one."""
    kind = ir.FunctionType(INTS, [INTS, INTS, INTS])
    call = get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
    return builder.call(call, [total, builder.bitcast(w, INTS), builder.bitcast(x, INTS)])


def _block(context: Any, builder: Any, total: Any, kind: Any, parts: Any, start: Any, first: Any, second: Any) -> Any:
    """total + the sums of a block's products, in 16 places, of two times 64 weights with x as `split` writes it."""

    def part(index: int) -> Any:
        return read(context, builder, kind, parts, builder.add(start, start.type(HALF * index)), BYTE, HALF)

    high = _dot(builder, _dot(builder, same(INT, 0), first, part(0)), second, part(1))
    low = _dot(builder, _dot(builder, total, first, part(2)), second, part(3))
    return builder.add(builder.shl(high, same(INT, 8)), low)


@intrinsic
def products(typing: Any, w: Any, at: Any, left: Any, parts: Any, start: Any, taken: Any, of_taken: Any) -> Any:
    """`left` bytes of weights from w[at] on times a block of x. Of int8 place l has the products of columns 4 l to
    4 l + 3 and of those 64 further on; of 4-bit numbers, less 8 each, those of columns 8 l to 8 l + 7."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind, _, _, x_kind, _, taken_kind, _ = signature.args
        w, at, left, parts, start, taken, of_taken = given
        first = _read(context, builder, kind, w, at, HALF, left)
        if kind.dtype == types.uint8:
            halves = builder.and_(first, same(BYTE, 15, HALF)), builder.lshr(first, same(BYTE, 4, HALF))
        else:
            at, left = builder.add(at, at.type(HALF)), builder.sub(left, left.type(HALF))
            second = _read(context, builder, kind, w, at, HALF, left)
            halves = tuple(builder.xor(each, same(BYTE, 128, HALF)) for each in (first, second))
        total = read(context, builder, taken_kind, taken, of_taken, INT)
        return _block(context, builder, total, x_kind, parts, start, *halves)

    return ints(w, types.intp, types.intp, parts, types.intp, taken, types.intp), generate


@intrinsic
def times(typing: Any, n: Any, taken: Any, start: Any) -> Any:
    """(n - 8) * taken[start : start + 16]."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        of_x = read(context, builder, signature.args[1], given[1], given[2], INT)
        return builder.mul(builder.sub(given[0], same(INT, 8)), of_x)

    return ints(ints, taken, types.intp), generate


@intrinsic
def as_floats(typing: Any, n: Any) -> Any:
    """Ints as floats, of more than 24 bits the nearest."""
    return floats(ints), lambda context, builder, signature, given: builder.sitofp(given[0], FLOATS)


@intrinsic
def places(typing: Any, shift: Any) -> Any:
    """In which of a block's groups, of 2^shift times 8 columns, each of the 16 places has its 8 columns."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.lshr(constant(INT, range(LANES)), _in_all(builder, given[0]))

    return ints(types.intp), generate


@intrinsic
def spread(typing: Any, array: Any, start: Any, left: Any, of_places: Any) -> Any:
    """What groups have one byte of, from array[start] on, for each of the 16 places that of its group."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = signature.args[0]
        numbers = _read(context, builder, kind, given[0], given[1], LANES, given[2])
        numbers = (builder.sext if kind.dtype == types.int8 else builder.zext)(numbers, INTS)
        permute = ir.FunctionType(INTS, [INTS, INTS])
        call = get_or_insert_function(builder.module, permute, "llvm.x86.avx512.permvar.si.512")
        return builder.call(call, [numbers, given[3]])

    return ints(array, types.intp, types.intp, of_places), generate


@intrinsic
def _write(typing: Any, parts: Any, start: Any, x: Any) -> Any:
    """16 floats, rounded, as the high bytes from parts[start] on and the low ones a block further on."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        parts, start, x = given
        rint = get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS]), "llvm.rint.v16f32")
        n = builder.fptosi(builder.call(rint, [x]), INTS)
        high = builder.ashr(builder.add(n, same(INT, 128)), same(INT, 8))
        low = builder.sub(n, builder.shl(high, same(INT, 8)))
        data = make_array(signature.args[0])(context, builder, parts).data
        for numbers, offset in ((high, 0), (low, BLOCK)):
            pointer = builder.gep(data, [builder.add(start, start.type(offset))])
            value = builder.trunc(numbers, ir.VectorType(BYTE, LANES))
            builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.none(parts, types.intp, floats), generate


def _alternate(first: int) -> Any:
    @intrinsic
    def alternate(typing: Any, x: Any, start: Any) -> Any:
        """Every second of 32 floats from x[start] on."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            both = read(context, builder, signature.args[0], given[0], given[1], FLOAT, 2 * LANES)
            return builder.shuffle_vector(both, both, constant(INT, range(first, 2 * LANES, 2)))

        return floats(x, types.intp), generate

    return alternate


_evens, _odds = _alternate(0), _alternate(1)


@intrinsic
def _write_taken(typing: Any, taken: Any, at: Any, parts: Any, start: Any, zero: Any) -> Any:
    """taken[at : at + 16] = -zero times the sums of a block's columns whose products one place has."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind, _, x_kind, _, _ = signature.args
        taken, at, parts, start, zero = given
        ones = same(BYTE, 1, HALF)
        sums = _block(context, builder, same(INT, 0), x_kind, parts, start, ones, ones)
        value = builder.mul(sums, builder.neg(_in_all(builder, zero)))
        pointer = builder.gep(make_array(kind)(context, builder, taken).data, [at])
        builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(taken, types.intp, parts, types.intp, types.intp), generate


@intrinsic
def power(typing: Any, powers: Any, block: Any) -> Any:
    """powers[block] in all 16 places."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        one = read(context, builder, signature.args[0], given[0], given[1], FLOAT, 1)
        return builder.shuffle_vector(one, one, same(INT, 0))

    return floats(powers, types.intp), generate


@inline
def _power(x: Any, start: int) -> Any:
    """p of a block of x; not a number where the block has what is infinite or none."""
    most, finite = zeros(), zeros()
    for i in range(start, start + BLOCK, LANES):
        values = load(x, i)
        most = larger(values, larger(zeros() - values, most))
        finite = madd(values, np.float32(0), finite)
    exponent = (np.float32(largest(most) * np.float32(2**15 / MOST)).view(np.int32) >> 23) - 126
    return two_to(np.float32(max(exponent - 15, -110))) + total(finite)


@inline
def split(x: Any, rows: int, paired: bool) -> Any:
    """R rows of x in blocks: their bytes, what the zero points take off them, and powers of two. Paired,
    the even columns of a block come before the odd ones, for weights of which two share a byte."""
    count = len(x) // rows
    blocks = -(-count // BLOCK)
    parts, taken = aligned(rows * blocks * 2 * BLOCK, np.int8), aligned(rows * blocks * LANES, np.int32)
    powers, row = np.empty(rows * blocks, np.float32), np.zeros(blocks * BLOCK, np.float32)
    for r in range(rows):
        for i in range(count):
            row[i] = number(x[r * count + i])
        for b in range(blocks):
            at, to = b * BLOCK, (r * blocks + b) * 2 * BLOCK
            power = _power(row, at)
            powers[r * blocks + b], inverse = power, np.float32(1) / power
            for i in range(0, HALF, LANES):
                first, second = load(row, at + i), load(row, at + HALF + i)
                if paired:
                    first, second = _evens(row, at + 2 * i), _odds(row, at + 2 * i)
                _write(parts, to + i, first * inverse)
                _write(parts, to + HALF + i, second * inverse)
            _write_taken(taken, (r * blocks + b) * LANES, parts, to, 8 if paired else 128)
    return parts, taken, powers


@intrinsic
def prefetch(typing: Any, array: Any, at: Any) -> Any:
    """Bring the line of array[at] near, which need not exist."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        ask(context, builder, signature.args[0], given[0], given[1])
        return context.get_dummy_value()

    return types.none(array, types.intp), generate
