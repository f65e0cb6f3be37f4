"""Blocks of 256 values in 8 or 16 runs, whose scales are themselves small whole numbers times the block's; and blocks
of values that are -1, 0 or 1. Sizes are in bytes; d and m are fp16.

The formulas are those of ggml-quants.c (llama.cpp, MIT), and results are equal to its own to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.weights.gguf.bits import fields, grouped, half, numbers, planes, words
from minillm.weights.grouped import Fields


def q2_k(blocks: Tensor) -> Tensor:
    """16 runs of 16: scales 16 (s in low, z in high bits), codes 64 in runs of 32 by two bits, d 2, m 2.
    x = d s q - m z."""
    scales, codes, d, m = fields(blocks, 16, 64, 2, 2)
    low, high = scales & 15, scales >> 4
    return _with_minimum(half(d) * low, half(m) * high, planes(codes, 32, 2))


def q3_k(blocks: Tensor) -> Tensor:
    """16 runs of 16: third bits 32 by one bit, codes 64 in runs of 32 by two bits, scales 12 (low four bits of 0 to 7
    and 8 to 15 in 8 bytes, high two bits by fours in 4), d 2. x = d (s - 32) (q - 4), with q's third bit for 4."""
    third, codes, scales, d = fields(blocks, 32, 64, 12, 2)
    low, high = planes(scales[:, :8], 8, 4), planes(scales[:, 8:], 4, 2)
    values = planes(codes, 32, 2) + 4 * planes(third, 32, 1) - 4
    return grouped(half(d) * ((low | high << 4) - 32), values)


def q4_k(blocks: Tensor) -> Fields:
    """8 runs of 32: d 2, m 2, scales 12 (`_scales`), codes 128 in runs of 32 by four bits. x = d s q - m z."""
    d, m, scales, codes = fields(blocks, 2, 2, 12, 128)
    s, z = _scales(scales)
    d, m = words(d, torch.float16), words(m, torch.float16)
    return Fields(numbers(codes, 32, 4), s, factor=d, least=z, floor=m)


def q5_k(blocks: Tensor) -> Fields:
    """8 runs of 32: d 2, m 2, scales 12 (`_scales`), fifth bits 32 by one bit, codes 128 as in Q4_K.
    x = d s q - m z."""
    d, m, scales, fifth, codes = fields(blocks, 2, 2, 12, 32, 128)
    s, z = _scales(scales)
    d, m = words(d, torch.float16), words(m, torch.float16)
    return Fields(numbers(codes, 32, 4) | numbers(fifth, 32, 1) << 4, s, factor=d, least=z, floor=m)


def q6_k(blocks: Tensor) -> Fields:
    """16 runs of 16: low four bits 128 in runs of 64, high two bits 64 in runs of 32, int8 scales 16, d 2.
    x = d s (q - 32)."""
    low, high, scales, d = fields(blocks, 128, 64, 16, 2)
    q = numbers(low, 64, 4) | numbers(high, 32, 2) << 4
    return Fields(q, scales.view(torch.int8), factor=words(d, torch.float16))


def iq4_xs(blocks: Tensor) -> Fields:
    """8 runs of 32: d 2, high two bits of the scales 2, their low four bits 4, codes 128 in runs of 16 by four bits.
    x = d (s - 32) NONLINEAR[q]."""
    d, high, low, codes = fields(blocks, 2, 2, 4, 128)
    scales = (planes(low, 1, 4) | planes(high, 1, 2) << 4) - 32
    return Fields(numbers(codes, 16, 4), scales, factor=words(d, torch.float16))


def tq1_0(blocks: Tensor) -> Tensor:
    """Five values to a byte in runs of 32 and of 16, four to one in the last 4 bytes, then d 2. A byte is a fraction of
    256 whose digits in base 3 are the values + 1: the first is floor(3 b / 256), the next that of 3 b mod 256."""
    long, short, last, d = fields(blocks, 32, 16, 4, 2)
    digits = [_ternary(part, count) for part, count in ((long, 5), (short, 5), (last, 4))]
    return half(d) * torch.cat(digits, dim=1)


def tq2_0(blocks: Tensor) -> Tensor:
    """Codes 64 in runs of 32 by two bits, d 2. x = d (q - 1)."""
    codes, d = fields(blocks, 64, 2)
    return half(d) * (planes(codes, 32, 2) - 1)


def _with_minimum(scale: Tensor, minimum: Tensor, values: Tensor) -> Tensor:
    return (grouped(scale, values).view(*minimum.shape, -1) - minimum.unsqueeze(-1)).view(values.shape)


def _scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """8 scales and 8 minima of 6 bits in 12 bytes a, b, c of four each: the first four are the low six bits of a and
    b; of the others c has the low four bits, minima in its high half, and the top of a and b the high two."""
    a, b, c = fields(packed, 4, 4, 4)
    scales = torch.cat((a & 63, c & 15 | a >> 6 << 4), dim=1)
    return scales.view(torch.int8), torch.cat((b & 63, c >> 4 | b >> 6 << 4), dim=1).view(torch.int8)


def _ternary(part: Tensor, count: int) -> Tensor:
    powers = torch.tensor([3**i for i in range(count)], dtype=torch.int32)
    moved = part.int().unsqueeze(1) * powers[:, None] & 255
    return (moved * 3 >> 8).flatten(1) - 1
