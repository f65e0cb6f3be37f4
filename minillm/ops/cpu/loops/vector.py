"""Vectors of 16 floats inside numba's functions: the few operations that loops over weights are made of.

LLVM turns a vector of 16 floats into one register of AVX-512, two of AVX2 or four of NEON. Loops written with them sum
up in one order, whatever the compiler makes of the code around: a row's result does not depend on its neighbours.

Arrays hold bfloat16 as uint16 and float16 as int16, neither of which NumPy or numba can compute with; int8 and float32
are themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numba.extending
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import models, register_model
from numba.np.arrayobj import make_array

intrinsic: Any = numba.extending.intrinsic  # a type checker would count the parameters of what it returns wrongly
LANES = 16
FLOAT, HALF, BYTE, SHORT, INT = ir.FloatType(), ir.HalfType(), ir.IntType(8), ir.IntType(16), ir.IntType(32)
FLOATS = ir.VectorType(FLOAT, LANES)
FUSE = ("contract",)  # a product and the sum it goes into may be one instruction


class Floats(types.Type):
    """The type of such a vector."""

    def __init__(self) -> None:
        super().__init__(name="floats")


floats = Floats()


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any):
        super().__init__(manager, kind, FLOATS)


def constant(element: ir.Type, values: Sequence[float]) -> ir.Constant:
    return ir.Constant(ir.VectorType(element, len(values)), list(values))


def same(element: ir.Type, value: float, count: int = LANES) -> ir.Constant:
    return constant(element, [value] * count)


def read(context: Any, builder: Any, kind: Any, array: Any, start: Any, element: ir.Type, count: int = LANES) -> Any:
    """`count` elements of an array from `start` on, as they lie in memory."""
    pointer = builder.gep(make_array(kind)(context, builder, array).data, [start])
    return builder.load(builder.bitcast(pointer, ir.VectorType(element, count).as_pointer()), align=1)


def ask(context: Any, builder: Any, kind: Any, array: Any, start: Any) -> None:
    """Have the line of an element of an array, which need not exist, brought into the second cache: lines that wait in
    the first drive out what it is there for."""
    ask_for(builder, builder.gep(make_array(kind)(context, builder, array).data, [start]))


def ask_for(builder: Any, pointer: Any) -> None:
    """`ask`, of a pointer."""
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, INT, INT, INT])
    call = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(call, [pointer, INT(0), INT(2), INT(1)])


@intrinsic
def ask_at(typing: Any, address: Any) -> Any:
    """`ask`, of an address."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        ask_for(builder, builder.inttoptr(given[0], BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.none(types.intp), generate


def floats_at(context: Any, builder: Any, kind: Any, array: Any, start: Any) -> Any:
    """16 elements of an array as floats, by the array's type."""
    elements = {types.float32: FLOAT, types.uint16: SHORT, types.int16: SHORT, types.int8: BYTE}
    return widened(builder, read(context, builder, kind, array, start, elements[kind.dtype]), kind.dtype)


def widened(builder: Any, raw: Any, dtype: Any) -> Any:
    """16 elements of a type that arrays have as floats."""
    if dtype == types.uint16:
        wide = builder.zext(raw, ir.VectorType(INT, LANES))
        return builder.bitcast(builder.shl(wide, same(INT, 16)), FLOATS)
    if dtype == types.int16:
        return builder.fpext(builder.bitcast(raw, ir.VectorType(HALF, LANES)), FLOATS)
    return builder.sitofp(raw, FLOATS) if dtype == types.int8 else raw


def fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return builder.fadd(builder.fmul(x, y, flags=FUSE), z, flags=FUSE)


@intrinsic
def zeros(typing: Any) -> Any:
    """A vector of zeros."""
    return floats(), lambda context, builder, signature, given: same(FLOAT, 0.0)


@intrinsic
def load(typing: Any, array: Any, start: Any) -> Any:
    """array[start : start + 16] as floats."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return floats_at(context, builder, signature.args[0], *given)

    return floats(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, start: Any, x: Any) -> Any:
    """array[start : start + 16] = x, rounded to the array's type."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = builder.gep(make_array(signature.args[0])(context, builder, given[0]).data, [given[1]])
        value = rounded_bits(builder, given[2], array.dtype)
        builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.none(array, types.intp, floats), generate


def _splat(builder: Any, x: Any) -> Any:
    nothing = ir.Constant(FLOATS, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(nothing, x, INT(0)), nothing, same(INT, 0))


@intrinsic
def splat(typing: Any, x: Any) -> Any:
    """A float in all 16 places."""
    return floats(types.float32), lambda context, builder, signature, given: _splat(builder, *given)


def _elementwise(operation: Callable[..., Any]) -> Callable[..., Any]:
    """How an op by place is compiled, for floats, for vectors, and for both, where a float stands for 16."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        wide = signature.return_type == floats
        alike = [
            _splat(builder, each) if wide and kind != floats else each
            for kind, each in zip(signature.args, given, strict=True)
        ]
        return operation(builder, *alike)

    return generate


def _of(*kinds: Any) -> Any:
    return (floats if floats in kinds else types.float32)(*kinds)


def _larger(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


@intrinsic
def larger(typing: Any, x: Any, y: Any) -> Any:
    """x where it is larger, else y, also where either is no number."""
    return _of(x, y), _elementwise(_larger)


@intrinsic
def smaller(typing: Any, x: Any, y: Any) -> Any:
    """x where it is smaller, else y, also where either is no number."""
    return _of(x, y), _elementwise(lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), x, y))


@intrinsic
def madd(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z."""
    return _of(x, y, z), _elementwise(fused)


@intrinsic
def floor(typing: Any, x: Any) -> Any:
    """The next whole number below."""

    def below(builder: Any, x: Any) -> Any:
        name = "llvm.floor.v16f32" if isinstance(x.type, ir.VectorType) else "llvm.floor.f32"
        return builder.call(get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type]), name), [x])

    return _of(x), _elementwise(below)


@intrinsic
def two_to(typing: Any, n: Any) -> Any:
    """2**n for floats that are whole numbers from -126 to 127: their exponent, without a multiplication."""

    def power(builder: Any, n: Any) -> Any:
        wide = isinstance(n.type, ir.VectorType)
        whole = builder.fptosi(n, ir.VectorType(INT, LANES) if wide else INT)
        bias, places = (same(INT, 127), same(INT, 23)) if wide else (INT(127), INT(23))
        return builder.bitcast(builder.shl(builder.add(whole, bias), places), n.type)

    return _of(n), _elementwise(power)


def _operator(symbol: Callable[..., Any], method: str) -> None:
    """x + y and the like with vectors."""

    @intrinsic
    def applied(typing: Any, x: Any, y: Any) -> Any:
        return _of(x, y), _elementwise(lambda builder, x, y: getattr(builder, method)(x, y))

    @numba.extending.overload(symbol, strict=False)
    def resolved(x: Any, y: Any) -> Any:
        return (lambda x, y: applied(x, y)) if floats in (x, y) else None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


def _by_halves(operation: Callable[..., Any]) -> Callable[..., Any]:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        vector, count = given[0], LANES
        while count > 1:
            count //= 2
            halves = [constant(INT, range(start, start + count)) for start in (0, count)]
            vector = operation(builder, *(builder.shuffle_vector(vector, vector, half) for half in halves))
        return builder.extract_element(vector, INT(0))

    return generate


@intrinsic
def total(typing: Any, x: Any) -> Any:
    """The sum of the 16 values, by halves."""
    return types.float32(floats), _by_halves(lambda builder, x, y: builder.fadd(x, y))


@intrinsic
def largest(typing: Any, x: Any) -> Any:
    """The largest of the 16 values."""
    return types.float32(floats), _by_halves(_larger)


@intrinsic
def number(typing: Any, x: Any) -> Any:
    """One element of an array as a float."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if x == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(given[0], INT), INT(16)), FLOAT)
        if x == types.int16:
            return builder.fpext(builder.bitcast(given[0], HALF), FLOAT)
        return given[0]

    return types.float32(x), generate


@intrinsic
def rounded(typing: Any, x: Any, array: Any) -> Any:
    """A float as an element of an array: the nearest, of two the even one."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return rounded_bits(builder, given[0], array.dtype)

    return array.dtype(types.float32, array), generate


def rounded_bits(builder: Any, x: Any, dtype: Any) -> Any:
    """A float or a vector in the bits of a type that arrays have."""
    wide = isinstance(x.type, ir.VectorType)
    whole, short = (ir.VectorType(INT, LANES), ir.VectorType(SHORT, LANES)) if wide else (INT, SHORT)

    def word(value: int) -> Any:
        return same(INT, value) if wide else INT(value)

    if dtype == types.int16:
        return builder.bitcast(builder.fptrunc(x, ir.VectorType(HALF, LANES) if wide else HALF), short)
    if dtype != types.uint16:
        return x
    bits = builder.bitcast(x, whole)
    odd = builder.and_(builder.lshr(bits, word(16)), word(1))
    cut = builder.lshr(builder.add(bits, builder.add(odd, word(0x7FFF))), word(16))
    kept = builder.or_(builder.lshr(bits, word(16)), word(0x40))  # not a number stays none
    return builder.trunc(builder.select(builder.fcmp_unordered("uno", x, x), kept, cut), short)
