"""Rotary frequencies: one function per kind of scaling, in a table by its spec; cos and sin of given positions.

Frequencies and phases are fp32 whatever the model's dtype: in bf16 a phase is noise by position 4096.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm.ops import reference
from minillm.spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    Rope,
    YarnScaling,
)


def _base_frequencies(dim: int, theta: float) -> Tensor:
    """theta^(-2i/dim) for i in 0 .. dim/2 - 1, fp32."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)


def _linear(rope: Rope, scaling: LinearScaling, length: int) -> Tensor:
    return _base_frequencies(rope.dim, rope.theta) / scaling.factor


def _dynamic(rope: Rope, scaling: DynamicScaling, length: int) -> Tensor:
    """theta' = theta * (factor * L / L0 - (factor - 1))^(dim / (dim - 2)), with L no less than L0."""
    stretch = scaling.factor * max(length, scaling.original_positions) / scaling.original_positions
    theta = rope.theta * (stretch - (scaling.factor - 1)) ** (rope.dim / (rope.dim - 2))
    return _base_frequencies(rope.dim, theta)


def _llama3(rope: Rope, scaling: Llama3Scaling, length: int) -> Tensor:
    """Smooth = (L0 / wavelength - low) / (high - low), clamped to [0, 1]; f * (smooth + (1 - smooth) / factor)."""
    frequencies = _base_frequencies(rope.dim, rope.theta)
    turns = scaling.original_positions * frequencies / (2 * math.pi)  # L0 / wavelength
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = ((turns - low) / (high - low)).clamp(0, 1) if high > low else (turns > high).float()
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def _yarn(rope: Rope, scaling: YarnScaling, length: int) -> Tensor:
    """Dimensions that turn over beta_fast times within L0 are kept, under beta_slow divided, a ramp between."""

    def dimension(turns: float) -> float:
        return rope.dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    high += 0.001 if low == high else 0  # a ramp of no width divides by zero
    interpolated = ((torch.arange(rope.dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    frequencies = _base_frequencies(rope.dim, rope.theta)
    return frequencies / scaling.factor * interpolated + frequencies * (1 - interpolated)


def _longrope(rope: Rope, scaling: LongRopeScaling, length: int) -> Tensor:
    factors = scaling.long_factors if length > scaling.original_positions else scaling.short_factors
    return _base_frequencies(rope.dim, rope.theta) / torch.tensor(factors, device="cpu")


def _proportional(rope: Rope, scaling: ProportionalScaling, length: int) -> Tensor:
    """Zero behind the first int(part * dim / 2)."""
    rates = _base_frequencies(rope.dim, rope.theta) / scaling.factor
    rates[int(scaling.part * rope.dim // 2) :] = 0
    return rates


def attention_factor(rope: Rope, length: int) -> float:
    """What cos and sin are multiplied by, for a sequence of `length` positions."""
    scaling = rope.scaling
    if isinstance(scaling, LongRopeScaling):
        long = length > scaling.original_positions
        return scaling.long_attention_factor if long else scaling.short_attention_factor
    return scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0


FREQUENCIES: dict[type, Callable[[Rope, Any, int], Tensor]] = {
    type(None): lambda rope, scaling, length: _base_frequencies(rope.dim, rope.theta),
    LinearScaling: _linear,
    DynamicScaling: _dynamic,
    Llama3Scaling: _llama3,
    YarnScaling: _yarn,
    LongRopeScaling: _longrope,
    ProportionalScaling: _proportional,
}


def frequencies(rope: Rope, length: int) -> Tensor:
    """Radians per position, `[dim/2]` fp32 on the CPU, for a sequence of `length` positions in all."""
    return FREQUENCIES[type(rope.scaling)](rope, rope.scaling, length)


class Rotary:
    """cos and sin of one `Rope` at any positions; keeps its frequencies until a length changes them."""

    def __init__(self, rope: Rope, cos_sin: Callable[..., tuple[Tensor, Tensor]] = reference.cos_sin):
        self.rope = rope
        self.cos_sin = cos_sin
        self._kept: tuple[object, Tensor, Tensor] | None = None

    def __call__(self, positions_BT: Tensor, lengths: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin `[B, T, dim/2]` in `dtype` at int64 positions `[B, T]` (B may be 1 for all rows), or
        `[B, T, dim/2]`, one for each pair.

        `lengths` has each row's length in positions, or one for all: some scalings depend on it.
        """
        return self.cos_sin(positions_BT, *self.kept(lengths, positions_BT.device), dtype)

    def kept(self, lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """Frequencies `[B or 1, 1, dim/2]` and attention factors `[B or 1, 1, 1]`, the same tensors while lengths do
        not change them."""
        scaling = self.rope.scaling
        if isinstance(scaling, DynamicScaling):
            lengths = tuple(max(length, scaling.original_positions) for length in lengths)
        elif isinstance(scaling, LongRopeScaling):
            lengths = tuple(scaling.original_positions + (length > scaling.original_positions) for length in lengths)
        else:
            lengths = (0,)
        lengths = lengths[:1] if len({*lengths}) == 1 else lengths
        if self._kept is None or self._kept[0] != (lengths, device):
            rows = [frequencies(self.rope, length) for length in lengths]
            factors = torch.tensor([[[attention_factor(self.rope, length)]] for length in lengths], device="cpu")
            made = torch.stack(rows).unsqueeze(1).to(device), factors.to(device)
            if type(made[0]) is not Tensor:  # a stand-in, where PyTorch looks only at what a pass would do
                return made
            self._kept = (lengths, device), *made
        return self._kept[1:]
