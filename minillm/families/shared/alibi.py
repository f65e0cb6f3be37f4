"""How much each head loses for a position between query and key (ALiBi, Press et al., arXiv:2108.12409)."""

from __future__ import annotations


def slopes(heads: int) -> tuple[float, ...]:
    """2^(-8/n), 2^(-16/n), ... of n heads, n a power of 2; with more heads every second one of 2n heads follows."""
    whole = 1 << (heads.bit_length() - 1)
    return (*_powers(whole), *_powers(2 * whole)[::2][: heads - whole])


def _powers(heads: int) -> list[float]:
    return [2.0 ** (-8 * (i + 1) / heads) for i in range(heads)]
