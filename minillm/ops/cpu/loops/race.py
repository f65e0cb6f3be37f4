"""The draw of `ops/draw.py`: which token's clock rings first. Shapes: V vocabulary.

The clock of token i rings at E_i / p_i, where E_i = -log(1 - u_i) and u_i is Philox's number for it. As E >= u, a token
with u_i / p_i above the best time so far cannot win, so that few tokens need a logarithm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minillm.ops.cpu.loops.jit import array, inline, kernel, parallel

PART = 8192  # tokens of a thread's turn
RUN = 64  # tokens whose numbers are made at once, by vectors
SLACK = 1 + 1e-5  # fp32 has the logarithms of chances
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
FACTORS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@inline
def _philox(seed: Any, position: Any, token: Any) -> Any:
    """`draw.uniform`, times 2^32 and less 1/2."""
    c0, c1, c2, c3 = token, position & LOW, position >> HALF, np.uint64(0)
    k0, k1 = seed & LOW, seed >> HALF
    for _ in range(10):
        one, two = (c0 & LOW) * FACTORS[0], (c2 & LOW) * FACTORS[1]
        c0, c1, c2, c3 = (two >> HALF) ^ c1 ^ k0, two & LOW, (one >> HALF) ^ c3 ^ k1, one & LOW
        k0, k1 = (k0 + STEPS[0]) & LOW, (k1 + STEPS[1]) & LOW
    return c0


@inline
def _score(chance: Any, u: Any) -> Any:
    return np.float64(np.log(chance)) - np.log(-np.log1p(-u))


@parallel
def _race(chances: Any, seed: Any, position: Any, first: Any, numbers: Any, scores: Any, found: Any) -> None:
    """Of each part the best score and its token. `first` is a likely token, which gives a time to beat."""
    begin = (np.float64(_philox(seed, position, np.uint64(first))) + 0.5) * 2.0**-32
    for part in prange(len(scores)):
        best, where = _score(chances[first], begin), np.int64(first)
        limit = np.exp(-best) * SLACK
        end = min(np.int64(part + 1) * PART, len(chances))
        for at in range(np.int64(part) * PART, end, RUN):
            count = min(RUN, end - at)
            for i in range(count):
                numbers[part, i] = np.float64(_philox(seed, position, np.uint64(at + i)))
            for i in range(count):
                u, chance = (numbers[part, i] + 0.5) * 2.0**-32, chances[at + i]
                if u < limit * chance:
                    score = _score(chance, u)
                    if score > best:
                        best, where, limit = score, at + i, np.exp(-score) * SLACK
        scores[part], found[part] = best, where


@kernel
def race(chances_at: int, found_at: int, size: int, seed: int, position: int, first: int) -> None:
    """found int64 `[1]`: the token that is drawn of chances fp32 `[V]`, one of which is that of `first`, above 0."""
    parts = -(-size // PART)
    numbers, scores, found = np.empty((parts, RUN)), np.empty(parts), np.empty(parts, np.int64)
    chances = array(chances_at, size, np.empty(0, np.float32))
    _race(chances, np.uint64(seed), np.uint64(position), first, numbers, scores, found)
    array(found_at, 1, found)[0] = found[scores.argmax()]
