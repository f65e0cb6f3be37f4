"""Rotary positions and their scalings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeLayout = Literal["half", "interleaved"]


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: every frequency divided by `factor` (arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """Dynamic NTK: the base grows with the length once it passes `original_positions`."""

    factor: float
    original_positions: int


@dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a linear blend between (Llama 3.1, arXiv:2407.21783)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: a ramp over dimensions from interpolation to extrapolation; cos and sin times `attention_factor`
    (Peng et al., arXiv:2309.00071)."""

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE: a divisor per frequency, `long_factors` once a sequence passes `original_positions`, else
    `short_factors`; cos and sin times the attention factor of the same regime (Ding et al., arXiv:2402.13753)."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_positions: int
    short_attention_factor: float
    long_attention_factor: float


@dataclass(frozen=True)
class ProportionalScaling:
    """Only the first `part` of all pairs turns, as fast as if all did, divided by `factor` (Gemma 4, 2026)."""

    part: float
    factor: float = 1.0


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling | ProportionalScaling


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al., arXiv:2104.09864) of the first `dim` values of each head.

    `layout` says which values form a pair: "half" (i, i + dim/2), or "interleaved" (2i, 2i + 1).
    """

    dim: int
    theta: float
    layout: RopeLayout = "half"
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class Unturned:
    """No rotation: `dim` values in place of rotary ones, which do not depend on the position."""

    dim: int
