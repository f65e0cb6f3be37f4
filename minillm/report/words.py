"""Numbers in words, for people: bytes, parameters, and which of a series."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
FEW = 10**8  # parameters, of which billions would show less than two digits


def size(nbytes: float) -> str:
    """Decimal, three digits and more: 16060522496 -> "16.06 GB"."""
    unit, word = next((each for each in SIZES if nbytes >= each[0]), (1, "bytes"))
    return f"{nbytes:,.0f} bytes" if unit == 1 else f"{nbytes / unit:,.2f} {word}"


def parameters(count: int) -> str:
    """8030261248 -> "8.03 B", 885504 -> "0.89 M", 4224 -> "4,224"."""
    if count >= FEW:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.2f} M" if count >= FEW / 1000 else f"{count:,}"


def runs(indices: Sequence[int]) -> str:
    """0, 1, 2, 4, 6, 7 -> "0 to 2, 4, 6, 7"."""
    found = [[i for _, i in run] for _, run in itertools.groupby(enumerate(indices), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in found)
