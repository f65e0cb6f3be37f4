"""Blocks of 256 values in groups of 8 or 4 that are points of a grid: a code is a point's number, a sign each may
follow. Sizes are in bytes; d is fp16.

The grids are data, chosen by search and not by a formula: `grids.npz` has those of ggml-common.h (llama.cpp, MIT), each
`[points, 8 or 4]` of small whole numbers. The formulas are those of ggml-quants.c, and results are equal to its own to
the last bit.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minillm.weights.gguf.bits import chosen, fields, grouped, half, planes, shifted, stream, unsigned

GRIDS = Path(__file__).with_name("grids.npz")
SHIFT = 0.125  # of all three values of a 1-bit grid


def iq2_xxs(blocks: Tensor) -> Tensor:
    """8 runs of 32 as 8 bytes each: 4 codes, and a u32 of 4 times 7 bits of signs and 4 bits of scale.
    x = d (s + 1/2) / 4 ± grid[q]."""
    d, runs = fields(blocks, 2, 64)
    runs = runs.reshape(-1, 8)
    last = unsigned(runs[:, 4:], torch.int32).view(len(blocks), 8)
    points = chosen(_grid("iq2_xxs"), runs[:, :4].reshape(len(blocks), -1))
    return grouped(half(d) * (0.5 + (last >> 28)) * 0.25, _signed(points, _seven_bits(last)))


def iq2_xs(blocks: Tensor) -> Tensor:
    """16 runs of 16: d 2, u16 codes 64 (9 bits, and 7 of signs), scales of 4 bits 8. x = d (s + 1/2) / 4 ± grid[q]."""
    d, codes, scales = fields(blocks, 2, 64, 8)
    codes = unsigned(codes, torch.int16)
    points = chosen(_grid("iq2_xs"), codes & 511)
    return grouped(half(d) * (0.5 + stream(scales, 4)) * 0.25, _signed(points, _eighth(codes >> 9)))


def iq2_s(blocks: Tensor) -> Tensor:
    """16 runs of 16: d 2, low eight bits of codes 32, signs 32, high two bits of codes 8, scales of 4 bits 8.
    x = d (s + 1/2) / 4 ± grid[q]."""
    d, low, signs, high, scales = fields(blocks, 2, 32, 32, 8, 8)
    points = chosen(_grid("iq2_s"), low | stream(high, 2).int() << 8)
    return grouped(half(d) * (0.5 + stream(scales, 4)) * 0.25, _signed(points, signs))


def iq3_xxs(blocks: Tensor) -> Tensor:
    """8 runs of 32: d 2, codes of four values 64, and for each run a u32 as in IQ2_XXS 32. x = d (s + 1/2) / 2 ±
    grid[q]."""
    d, codes, last = fields(blocks, 2, 64, 32)
    last = unsigned(last, torch.int32)
    points = chosen(_grid("iq3_xxs"), codes)
    return grouped(half(d) * (0.5 + (last >> 28)) * 0.5, _signed(points, _seven_bits(last)))


def iq3_s(blocks: Tensor) -> Tensor:
    """8 runs of 32: d 2, low eight bits of codes of four values 64, their ninth bits 8, signs 32, scales of 4 bits 4.
    x = d (2 s + 1) ± grid[q]."""
    d, low, ninth, signs, scales = fields(blocks, 2, 64, 8, 32, 4)
    points = chosen(_grid("iq3_s"), low | stream(ninth, 1).int() << 8)
    return grouped(half(d) * (1 + 2 * stream(scales, 4)), _signed(points, signs))


def iq1_s(blocks: Tensor) -> Tensor:
    """8 runs of 32: d 2, low eight bits of codes 32, a u16 for each run 16: 4 times the high three bits, 3 of scale,
    the sign of the shift. x = d (2 s + 1) (grid[q] ± 1/8)."""
    d, low, high = fields(blocks, 2, 32, 16)
    high = unsigned(high, torch.int16)
    points = chosen(_grid("iq1_s"), low | shifted(high[..., None], (0, 3, 6, 9), 3).flatten(1) << 8)
    shift = SHIFT * (1 - 2 * (high >> 15))
    values = points.view(len(blocks), 8, 32) + shift.unsqueeze(-1)
    return grouped(half(d) * (2 * (high >> 12 & 7) + 1), values.view(len(blocks), -1))


def iq1_m(blocks: Tensor) -> Tensor:
    """16 runs of 16: low eight bits of codes 32, of each two codes 4 bits each 16 (the high three, the sign of the
    shift), u16 scales 8: 4 times 3 bits each, and in their upper four bits d, the lowest first. x = d (2 s + 1)
    (grid[q] ± 1/8)."""
    low, high, scales = fields(blocks, 32, 16, 8)
    high, scales = stream(high, 4).int(), unsigned(scales, torch.int16)
    whole = (scales >> 12 << torch.tensor([0, 4, 8, 12])).sum(1, keepdim=True)
    d = whole.to(torch.int32).view(torch.int16)[:, ::2].contiguous().view(torch.float16).float()
    points = chosen(_grid("iq1_s"), low | (high & 7) << 8)
    values = points + (SHIFT * (1 - 2 * (high >> 3))).unsqueeze(-1)
    scale = shifted(scales[..., None], (0, 3, 6, 9), 3).flatten(1)
    return grouped(d * (2 * scale + 1), values.view(len(blocks), -1))


@functools.cache
def _grid(name: str) -> Tensor:
    with np.load(GRIDS, allow_pickle=False) as found:
        return torch.from_numpy(found[name].astype(np.float32))


def _signed(points: Tensor, signs: Tensor) -> Tensor:
    """Points `[N, P, 4 or 8]` with the signs of their values, a bit each in `[N, bytes]`: `[N, 256]`."""
    return points.flatten(1) * (1 - 2 * stream(signs, 1))


def _seven_bits(word: Tensor) -> Tensor:
    """The signs in a u32: 4 bytes of each."""
    return _eighth(shifted(word[..., None], (0, 7, 14, 21), 7).flatten(1))


def _eighth(signs: Tensor) -> Tensor:
    """Seven signs with the eighth, which makes the number of minus even."""
    parity = planes(signs.to(torch.uint8).flatten()[:, None], 1, 1).sum(1).view(signs.shape) & 1
    return (signs | parity << 7).to(torch.uint8)
