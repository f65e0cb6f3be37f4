"""What stands for a token before the first layer."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.spec.norm import LayerNorm, Norm


@dataclass(frozen=True)
class Learned:
    """A learned row for each of `count` positions, added to a token's (Radford et al., 2018); there are none beyond.
    That of position p is row p + `skipped`: the rows before it stand for nothing."""

    count: int
    skipped: int = 0


@dataclass(frozen=True)
class Embedding:
    """norm(scale * E[token] + P[position]), the product rounded to the table's dtype. `positions` None: nothing is
    added. `norm` None: there is none. `rows`: the first row of E, and of the head, that is here and the one behind the
    last; other ranks have the others. `unused`: so many rows of E, and of the head, come behind those of the
    vocabulary and stand for no token."""

    scale: float = 1.0
    positions: Learned | None = None
    norm: Norm | LayerNorm | None = None
    rows: tuple[int, int] | None = None
    unused: int = 0


TOKENS = Embedding()  # and nothing else
