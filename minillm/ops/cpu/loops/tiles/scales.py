"""What numbers of a tile of 16 rows are multiplied with, and what is taken off them, as floats: of the parts of
`weights/grouped.py`, which may be of several types.

Shapes: G groups of a row, S spans of a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from minillm.ops.cpu.loops.jit import aligned, array_of, function, inline
from minillm.ops.cpu.loops.vector import BYTE, FLOATS, LANES, ask_at, floats, intrinsic, load, read, store, zeros

CHUNK = 32  # columns are a multiple of it
HALF, BFLOAT, FLOAT, CODE, NATURAL = range(5)  # types of scales: fp16, bf16, fp32, int8, uint8


@intrinsic
def _naturals(typing: Any, array: Any, start: Any) -> Any:
    """array[start : start + 16], uint8, as floats."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.uitofp(read(context, builder, signature.args[0], given[0], given[1], BYTE), FLOATS)

    return floats(array, types.intp), generate


@function
def fill_numbers(at: int, kind: int, tile: int, count: int, made_at: int) -> None:
    """made `[count, 16]` = what a tile has of numbers at an address; those of the next tile are asked for."""
    start, size = tile * count * LANES, count * LANES
    end, made = start + size, array_of(made_at, size, np.float32)
    halves, bfloats = array_of(at, end, np.int16), array_of(at, end, np.uint16)
    whole, codes, naturals = array_of(at, end, np.float32), array_of(at, end, np.int8), array_of(at, end, np.uint8)
    if kind == HALF:
        for i in range(0, size, LANES):
            store(made, i, load(halves, start + i))
            ask_at(at + 2 * (end + i))
    elif kind == BFLOAT:
        for i in range(0, size, LANES):
            store(made, i, load(bfloats, start + i))
            ask_at(at + 2 * (end + i))
    elif kind == FLOAT:
        for i in range(0, size, LANES):
            store(made, i, load(whole, start + i))
            ask_at(at + 4 * (end + i))
    elif kind == CODE:
        for i in range(0, size, LANES):
            store(made, i, load(codes, start + i))
            ask_at(at + end + i)
    else:
        for i in range(0, size, LANES):
            store(made, i, _naturals(naturals, start + i))
            ask_at(at + end + i)


@function
def _in_units(at: int, factor_at: int, kinds: Any, tile: int, counts: Any, made_at: int, factors_at: int) -> None:
    """made `[G, 16]`: scales or minima, times their factors."""
    groups, spans, per = counts
    fill_numbers(at, kinds[0], tile, groups, made_at)
    if factor_at:
        fill_numbers(factor_at, kinds[1], tile, spans, factors_at)
        made, factors = array_of(made_at, groups * LANES, np.float32), array_of(factors_at, spans * LANES, np.float32)
        for span in range(spans):
            factor = load(factors, span * LANES)
            for g in range(span * per, min((span + 1) * per, groups)):
                store(made, g * LANES, load(made, g * LANES) * factor)


@inline
def grouping(group: int, span: int, inputs: int) -> Any:
    """The size of groups, where 0 is one for a row; G, S and how many groups a span has."""
    group = group if group else -(-inputs // CHUNK) * CHUNK
    groups = -(-inputs // group)
    return group, (groups, -(-inputs // span) if span else 1, span // group if span else groups)


@inline
def room(counts: Any, chunks: int, runs: int) -> Any:
    """Memory for the scales of one tile in each run, made before and outside the loop over runs: what is made in there
    is counted up and down, by all threads, whenever it is handed on. There are scales of groups that a row's last chunk
    of 32 columns has none of: zeros."""
    return _zeros(runs * _room(counts, chunks))


@function
def _zeros(count: int) -> Any:
    made = aligned(count, np.float32)
    for i in range(0, count, LANES):
        store(made, i, zeros())
    return made


@inline
def _room(counts: Any, chunks: int) -> int:
    groups, spans, _ = counts
    return (2 * chunks + groups + spans + 1) * LANES


@inline
def places(at: int, run: int, counts: Any, chunks: int) -> Any:
    """Where a run has its scales, what is taken off, factors, and room for a vector: addresses."""
    groups, spans, _ = counts
    scales = at + 4 * run * _room(counts, chunks)
    less = scales + 4 * LANES * 2 * chunks
    return scales, less, less + 4 * LANES * groups, less + 4 * LANES * (groups + spans)


@function
def fill(at: Any, kinds: Any, tile: int, counts: Any, made: Any) -> None:
    """Scales of a tile, and zeros or minima if there are, `[G, 16]`, to where `places` says. counts are G, S and how
    many groups a span has."""
    _, _, scale_at, factor_at, zero_at, least_at, floor_at, _ = at
    scales, less, factors, _ = made
    _in_units(scale_at, factor_at, kinds, tile, counts, scales, factors)
    if least_at:
        _in_units(least_at, floor_at, kinds, tile, counts, less, factors)
    elif zero_at:
        fill_numbers(zero_at, kinds[2], tile, counts[0], less)
