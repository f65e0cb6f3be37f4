"""Many tokens through their experts in bf16, on processors that multiply bf16 themselves.

A library's product puts a matrix into the order of its instruction first, which for the few dozen tokens of an expert
takes a third of the time. Here the tokens are put in order, W is not: one instruction takes two values of W, from where
they lie, times those two columns of 16 tokens. Up to 96 tokens at a time and four rows of W, whose sums stay in
registers from the first column to the last.

Shapes: N tokens, k picks of each, P = N k, Q = P with each expert's tokens filled up to a multiple of 16, H hidden
size, F intermediate size, E experts, V vectors of 16 tokens in a tile, I columns of a product: H or F.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.np.arrayobj import make_array

from minillm.ops.cpu.loops.dots import native_pairs
from minillm.ops.cpu.loops.jit import aligned, array, function, inline, kernel, parallel
from minillm.ops.cpu.loops.pointwise import activated
from minillm.ops.cpu.loops.vector import (
    FLOAT,
    FLOATS,
    INT,
    LANES,
    SHORT,
    ask,
    constant,
    floats,
    intrinsic,
    load,
    madd,
    read,
    rounded_bits,
    same,
    splat,
    store,
    zeros,
)

INTP = ir.IntType(64)
ROWS = 4  # of W at a time
APART = 32  # values between two rows of results, which a power of two apart would share few lines of the cache
VECTORS = 6  # of tokens at a time at most: 24 sums, of the 32 registers that there are


def _sums(context: Any, builder: Any, kinds: Any, given: Any, vectors: int) -> list[Any]:
    """The sums that `_tile` stores: 4 V vectors. With few of them two of each take turns, for a sum waits for the one
    before it."""
    w, a, b, c, d, next_a, next_c, x, at, pairs = given
    number, turns = at.type, 2 if vectors <= 2 else 1
    sums = [cgutils.alloca_once(builder, FLOATS) for _ in range(turns * ROWS * vectors)]
    for each in sums:
        builder.store(same(FLOAT, 0.0), each)
    with cgutils.for_range(builder, builder.udiv(pairs, number(turns))) as loop:
        for turn in range(turns):
            pair = builder.add(builder.mul(loop.index, number(turns)), number(turn))
            column, start = builder.mul(pair, number(2)), builder.mul(pair, number(2 * LANES * vectors))
            of_w = [read(context, builder, kinds[0], w, builder.add(row, column), INT, 1) for row in (a, b, c, d)]
            of_w = [builder.shuffle_vector(each, each, same(INT, 0)) for each in of_w]
            for row in (next_a, next_c):
                ask(context, builder, kinds[0], w, builder.add(row, builder.mul(column, number(2))))
            for v in range(vectors):
                place = builder.add(builder.add(at, start), number(2 * LANES * v))
                of_x = read(context, builder, kinds[7], x, place, SHORT, 2 * LANES)
                for r, of_row in enumerate(of_w):
                    each = sums[(turn * ROWS + r) * vectors + v]
                    builder.store(native_pairs(builder, builder.load(each), of_x, of_row), each)
    found = [builder.load(each) for each in sums]
    half = ROWS * vectors
    return found if turns == 1 else [builder.fadd(*two) for two in zip(found[:half], found[half:], strict=True)]


def _tile(vectors: int) -> Any:
    @intrinsic
    def tile(
        typing: Any, w: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, x: Any, at: Any, pairs: Any, y: Any
    ) -> Any:
        """y `[4, V, 16]` = the rows of w that begin at a, b, c and d times V vectors of tokens, x[at:] `[I / 2, V, 16,
        2]`. Two rows from e and two from f on are asked for meanwhile."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            *operands, y = given
            data = make_array(signature.args[-1])(context, builder, y).data
            for i, value in enumerate(_sums(context, builder, signature.args, operands, vectors)):
                to = builder.bitcast(builder.gep(data, [INTP(LANES * i)]), FLOATS.as_pointer())
                builder.store(value, to, align=64)
            return context.get_dummy_value()

        place = types.intp
        return types.none(w, place, place, place, place, place, place, x, place, place, y), generate

    return tile


_tile_1, _tile_2, _tile_3, _tile_4, _tile_5, _tile_6 = (_tile(vectors) for vectors in range(1, VECTORS + 1))


@function
def _multiply(
    w: Any, a: int, b: int, c: int, d: int, e: int, f: int, x: Any, at: int, pairs: int, vectors: int, y: Any
) -> None:
    """The tile of so many vectors: a function of its own, for the six take long to compile."""
    if vectors == 1:
        _tile_1(w, a, b, c, d, e, f, x, at, pairs, y)
    elif vectors == 2:
        _tile_2(w, a, b, c, d, e, f, x, at, pairs, y)
    elif vectors == 3:
        _tile_3(w, a, b, c, d, e, f, x, at, pairs, y)
    elif vectors == 4:
        _tile_4(w, a, b, c, d, e, f, x, at, pairs, y)
    elif vectors == 5:
        _tile_5(w, a, b, c, d, e, f, x, at, pairs, y)
    else:
        _tile_6(w, a, b, c, d, e, f, x, at, pairs, y)


@intrinsic
def _store_pairs(typing: Any, y: Any, at: Any, first: Any, second: Any) -> Any:
    """y[at : at + 32] = first[0], second[0], first[1], …, rounded."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        y, at, *both = given
        numbers = [rounded_bits(builder, each, signature.args[0].dtype) for each in both]
        order = [place // 2 + place % 2 * LANES for place in range(2 * LANES)]
        value = builder.shuffle_vector(*numbers, constant(INT, order))
        pointer = builder.gep(make_array(signature.args[0])(context, builder, y).data, [at])
        builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=64)
        return context.get_dummy_value()

    return types.none(y, types.intp, floats, floats), generate


@intrinsic
def _store_rows(typing: Any, y: Any, at: Any, stride: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """y[at + i stride : … + 4] = a[i], b[i], c[i], d[i] for each of 16 places i, rounded."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        y, at, stride, *rows = given
        numbers = [rounded_bits(builder, each, signature.args[0].dtype) for each in rows]
        order = constant(INT, range(2 * LANES))
        halves = [builder.shuffle_vector(*numbers[i : i + 2], order) for i in (0, 2)]
        order = constant(INT, [place // 4 + place % 4 * LANES for place in range(4 * LANES)])
        whole = ir.IntType(64)
        fours = builder.bitcast(builder.shuffle_vector(*halves, order), ir.VectorType(whole, LANES))
        data = make_array(signature.args[0])(context, builder, y).data
        for i in range(LANES):
            pointer = builder.gep(data, [builder.add(at, builder.mul(stride, stride.type(i)))])
            builder.store(builder.extract_element(fours, INT(i)), builder.bitcast(pointer, whole.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.none(y, types.intp, types.intp, floats, floats, floats, floats), generate


@inline
def _width(vectors: int, left: int) -> int:
    """How many of an expert's `vectors` the next tile has, of which `left` are left: all about as many."""
    tiles = -(-vectors // VECTORS)
    return min(-(-vectors // tiles), left)


@parallel
def _arrange(x: Any, picks: Any, first: Any, begin: Any, top_k: int, pairs: int, y: Any) -> None:
    """Each expert's tokens as tiles `[H / 2, V, 16]` of pairs of columns. A place that no token has keeps what was
    there: each place is multiplied on its own, and nobody reads its results."""
    for each in prange(len(first) - 1):
        e = np.int64(each)
        vectors, v, rows = (begin[e + 1] - begin[e]) // LANES, 0, np.empty(VECTORS * LANES, np.int64)
        while v < vectors:
            width = _width(vectors, vectors - v)
            to, size, at = (begin[e] + v * LANES) * pairs, width * LANES, first[e] + v * LANES
            there = min(first[e + 1] - at, size)
            for i in range(there):
                rows[i] = picks[at + i] // top_k * pairs
            for p in range(pairs):
                for i in range(there):
                    y[to + p * size + i] = x[rows[i] + p]
            v += width


@parallel
def _into(w: Any, x: Any, begin: Any, threads: int, hidden: int, inner: int, activation: Any, y: Any) -> None:
    """y, tiles of F columns as `_arrange` makes them of H, = act(gate x) * up x."""
    for each in prange(threads):
        thread, sums = np.int64(each), aligned(ROWS * VECTORS * LANES, np.float32)
        for e in range(len(begin) - 1):
            vectors = (begin[e + 1] - begin[e]) // LANES
            for f in range(inner // 2 * thread // threads * 2, inner // 2 * (thread + 1) // threads * 2, 2):
                gate, v = (e * 2 * inner + f) * hidden, 0
                up = gate + inner * hidden
                while v < vectors:
                    width, token = _width(vectors, vectors - v), begin[e] + v * LANES
                    rows = gate, gate + hidden, up, up + hidden, gate + 2 * hidden, up + 2 * hidden
                    _multiply(w, *rows, x, token * hidden, hidden // 2, width, sums)
                    for i in range(0, width * LANES, LANES):
                        one = activated(load(sums, i), load(sums, 2 * width * LANES + i), activation)
                        two = activated(load(sums, width * LANES + i), load(sums, 3 * width * LANES + i), activation)
                        _store_pairs(y, token * inner + f * width * LANES + 2 * i, one, two)
                    v += width


@parallel
def _out_of(w: Any, x: Any, begin: Any, threads: int, inner: int, hidden: int, y: Any) -> None:
    """y `[Q, H + 32]` = down x, and 32 of nothing."""
    for each in prange(threads):
        thread, sums = np.int64(each), aligned(ROWS * VECTORS * LANES, np.float32)
        for e in range(len(begin) - 1):
            vectors = (begin[e + 1] - begin[e]) // LANES
            for h in range(hidden // 4 * thread // threads * 4, hidden // 4 * (thread + 1) // threads * 4, 4):
                row, v = (e * hidden + h) * inner, 0
                while v < vectors:
                    width, token = _width(vectors, vectors - v), begin[e] + v * LANES
                    rows = row, row + inner, row + 2 * inner, row + 3 * inner, row + 4 * inner, row + 6 * inner
                    _multiply(w, *rows, x, token * inner, inner // 2, width, sums)
                    size = width * LANES
                    for i in range(0, size, LANES):
                        a, b, c, d = (
                            load(sums, i),
                            load(sums, size + i),
                            load(sums, 2 * size + i),
                            load(sums, 3 * size + i),
                        )
                        _store_rows(y, (token + i) * (hidden + APART) + h, hidden + APART, a, b, c, d)
                    v += width


@parallel
def _summed(x: Any, places: Any, weights: Any, top_k: int, hidden: int, y: Any) -> None:
    """y `[N, H]` = for each token the sum of its weights times the rows of x at its places."""
    for each in prange(len(places) // top_k):
        n = np.int64(each)
        for h in range(0, hidden, LANES):
            result = zeros()
            for p in range(n * top_k, (n + 1) * top_k):
                result = madd(load(x, places[p] * (hidden + APART) + h), splat(weights[p]), result)
            store(y, n * hidden + h, result)


@kernel
def experts(at: Any, sizes: Any, activation: Any, like: Any) -> None:
    """y `[N, H]`: the sum of weights[n, k] times expert chosen[n, k] of x[n]. `at` are the addresses of x, the picks
    (n k + their place) sorted by expert, where each expert's begin `[E + 1]`, weights, gate_up, down and y; sizes are
    N, k, H, a multiple of 16, F, one of 4, E, and how many threads there are."""
    tokens, top_k, hidden, inner, count, threads = sizes
    whole = np.empty(0, np.int64)
    x = array(at[0], tokens * hidden // 2, np.empty(0, np.uint32))
    first, picks = array(at[2], count + 1, whole), array(at[1], tokens * top_k, whole)
    weights = array(at[3], tokens * top_k, np.empty(0, np.float32))
    gate_up, down = array(at[4], count * 2 * inner * hidden, like), array(at[5], count * hidden * inner, like)
    y, begin, places = array(at[6], tokens * hidden, like), np.zeros(count + 1, np.int64), np.empty_like(picks)
    for e in range(count):
        begin[e + 1] = begin[e] + -(-(first[e + 1] - first[e]) // LANES) * LANES
        for i in range(first[e], first[e + 1]):
            places[picks[i]] = begin[e] + i - first[e]
    packed = aligned(begin[count] * hidden // 2, np.uint32)
    _arrange(x, picks, first, begin, top_k, hidden // 2, packed)
    between, results = aligned(begin[count] * inner, like.dtype), aligned(begin[count] * (hidden + APART), like.dtype)
    _into(gate_up, packed.view(like.dtype), begin, threads, hidden, inner, activation, between)
    _out_of(down, between, begin, threads, inner, hidden, results)
    _summed(results, places, weights, top_k, hidden, y)
