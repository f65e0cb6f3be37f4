"""The equations of scores: what a query makes of a key, and what is added to that by their distance."""

from __future__ import annotations

from minillm.explain.scanned import w
from minillm.spec import GQA, AddedConv


def formula(a: GQA) -> str:
    """What a softmax is taken of."""
    scale, cap, slopes = a.scores.scale or a.head_dim**-0.5, a.scores.softcap, a.scores.slopes
    scores = "q_i k_j" if scale == 1 else f"{scale:.4g} q_i k_j"
    scores = scores if cap is None else f"{cap:g} tanh({scores} / {cap:g})"
    scores += " + r_i p_(i - j)" if a.scores.relative else ""
    return scores + (f" - m (i - j), m from {max(slopes):.4g} to {min(slopes):.4g} by head" if slopes else "")


def relative(a: GQA, hidden: int) -> list[str]:
    """What queries add to their scores by distance."""
    made = a.scores.relative
    if made is None:
        return []
    return [
        f"r = {w(a.num_heads * made.dim, hidden)} u: {a.num_heads} heads of {made.dim}; p_d: a learned vector for each "
        f"distance d below {made.extent}, 0 beyond"
    ]


def tempered(a: GQA) -> list[str]:
    """What grows with the position of a query."""
    warm = a.scores.temperature
    if warm is None:
        return []
    share = f"(i + {warm.shift}) / {warm.span}"
    factor = f"(1 + {warm.rate:g} ln({f'1 + floor({share})' if warm.stepped else f'max(1, {share})'}))"
    return [f"{each} = {factor} {each}" for each in ("q_i", "r_i")[: 2 if a.scores.relative else 1]]


def convolved(name: str, made: AddedConv | None) -> list[str]:
    """Of what goes through a convolution that is added to it."""
    if made is None:
        return []
    own = f"a weighted sum of the last {made.conv_kernel} positions of {name}, with {made.conv_kernel} weights"
    return [f"{name} = {name} + {own} for each value"]
