"""What numbers of a tile of 16 rows are multiplied with, and what is taken off them, as floats: of the parts of
`weights/grouped.py`, which may be of several types.

Shapes: G groups of a row, S spans of a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from minillm.ops.cpu.loops.jit import aligned, array, function, inline
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
def _numbers(at: int, kind: int, tile: int, count: int, made: Any) -> None:
    """made `[count, 16]` = what a tile has of numbers at an address; those of the next tile are asked for."""
    start, size = tile * count * LANES, count * LANES
    end = start + size
    halves, bfloats = array(at, end, np.empty(0, np.int16)), array(at, end, np.empty(0, np.uint16))
    whole, codes = array(at, end, np.empty(0, np.float32)), array(at, end, np.empty(0, np.int8))
    naturals = array(at, end, np.empty(0, np.uint8))
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


@inline
def _in_units(at: int, kind: int, factor_at: int, factor_kind: int, tile: int, counts: Any, made: Any, of: Any) -> None:
    """made `[G, 16]`: scales or minima, times their factors."""
    groups, spans, per = counts
    _numbers(at, kind, tile, groups, made)
    if factor_at:
        _numbers(factor_at, factor_kind, tile, spans, of)
        for span in range(spans):
            factor = load(of, span * LANES)
            for g in range(span * per, min((span + 1) * per, groups)):
                store(made, g * LANES, load(made, g * LANES) * factor)


@inline
def grouping(group: int, span: int, inputs: int) -> Any:
    """The size of groups, where 0 is one for a row; G, S and how many groups a span has."""
    group = group if group else -(-inputs // CHUNK) * CHUNK
    groups = -(-inputs // group)
    return group, (groups, -(-inputs // span) if span else 1, span // group if span else groups)


@inline
def room(counts: Any, chunks: int) -> Any:
    """Memory for `fill`. There are scales of groups that a row's last chunk of 32 columns has none of: zeros."""
    groups, spans, _ = counts
    made = aligned(2 * chunks * LANES, np.float32)
    for g in range(groups, 2 * chunks):
        store(made, g * LANES, zeros())
    return made, aligned(groups * LANES, np.float32), aligned(spans * LANES, np.float32)


@function
def fill(at: Any, kinds: Any, tile: int, counts: Any, made: Any) -> None:
    """Scales of a tile, and zeros or minima if there are, `[G, 16]`. counts are G, S and how many groups a span has."""
    _, _, scale_at, factor_at, zero_at, least_at, floor_at, _ = at
    kind, factor_kind, natural = kinds
    scales, less, factors = made
    _in_units(scale_at, kind, factor_at, factor_kind, tile, counts, scales, factors)
    if least_at:
        _in_units(least_at, kind, floor_at, factor_kind, tile, counts, less, factors)
    elif zero_at:
        _numbers(zero_at, natural, tile, counts[0], less)
