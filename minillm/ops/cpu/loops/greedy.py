"""The likeliest token of each row. Shapes: B rows, V vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.jit import array, inline, kernel, parallel
from minillm.ops.cpu.loops.vector import LANES, larger, largest, load, number, splat

PART = 1024  # values of which the largest is found before it is known where it lies
NONE = np.float32(-np.inf)


@inline
def _largest(x: Any, at: int, end: int) -> Any:
    """The largest number of x[at : end], and whether all are numbers."""
    high, numbers = splat(NONE), True
    for i in range(at, end - LANES + 1, LANES):
        high = larger(load(x, i), high)
    best = largest(high)
    for i in range(at + (end - at) // LANES * LANES, end):
        best = max(best, number(x[i]))
    for i in range(at, end):
        numbers &= number(x[i]) == number(x[i])
    return best, numbers


@parallel
def _best(x: Any, rows: int, size: int, found: Any) -> None:
    for each in prange(rows):
        row = np.int64(each)
        best, where, numbers = NONE, row * size, True
        for at in range(row * size, (row + 1) * size, PART):
            high, fine = _largest(x, at, min(at + PART, (row + 1) * size))
            numbers &= fine
            if high > best:
                best, where = high, at
        while number(x[where]) != best and numbers:
            where += 1
        found[row] = where - row * size if numbers and abs(best) < np.float32(np.inf) else -1


@kernel
def best(x_at: int, found_at: int, rows: int, size: int, like: Any) -> None:
    """found int64 `[B]`: where in each row of `[B, V]` the largest is, the first of several; -1 where that is not
    finite or one is no number."""
    _best(array(x_at, rows * size, like), rows, size, array(found_at, rows, np.empty(0, np.int64)))
