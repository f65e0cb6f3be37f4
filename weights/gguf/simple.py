"""Blocks with one scale for all of their values, or one for each 16. Sizes are in bytes; d and m are fp16.

The formulas are those of ggml-quants.c (llama.cpp, MIT), and results are equal to its own to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.weights.gguf.bits import fields, half, numbers, stream, words
from minillm.weights.grouped import Fields

# The 16 values of a 4-bit code that is denser around zero.
NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def f32(blocks: Tensor) -> Tensor:
    """One fp32 number."""
    return blocks.view(torch.float32)


def f16(blocks: Tensor) -> Tensor:
    """One fp16 number."""
    return blocks.view(torch.float16).float()


def bf16(blocks: Tensor) -> Tensor:
    """One bfloat16 number."""
    return blocks.view(torch.bfloat16).float()


def q4_0(blocks: Tensor) -> Fields:
    """32 values: d 2, codes 16, the first half in low bits. x = d (q - 8)."""
    d, codes = fields(blocks, 2, 16)
    return Fields(numbers(codes, 16, 4), words(d, torch.float16))


def q4_1(blocks: Tensor) -> Fields:
    """32 values: d 2, m 2, codes 16 as in Q4_0. x = d q + m."""
    d, m, codes = fields(blocks, 2, 2, 16)
    return Fields(numbers(codes, 16, 4), words(d, torch.float16), least=-words(m, torch.float16))


def q5_0(blocks: Tensor) -> Fields:
    """32 values: d 2, fifth bits 4, codes 16 as in Q4_0. x = d (q - 16)."""
    d, fifth, codes = fields(blocks, 2, 4, 16)
    return Fields(numbers(codes, 16, 4) | numbers(fifth, 1, 1) << 4, words(d, torch.float16))


def q5_1(blocks: Tensor) -> Fields:
    """32 values: d 2, m 2, fifth bits 4, codes 16 as in Q4_0. x = d q + m."""
    d, m, fifth, codes = fields(blocks, 2, 2, 4, 16)
    q = numbers(codes, 16, 4) | numbers(fifth, 1, 1) << 4
    return Fields(q, words(d, torch.float16), least=-words(m, torch.float16))


def q8_0(blocks: Tensor) -> Fields:
    """32 values: d 2, int8 codes 32. x = d q, and here d (q + 128 - 128)."""
    d, codes = fields(blocks, 2, 32)
    return Fields(codes ^ 128, words(d, torch.float16))


def q1_0(blocks: Tensor) -> Tensor:
    """128 values: d 2, a bit each 16. x = d or -d."""
    d, codes = fields(blocks, 2, 16)
    return half(d) * (2 * stream(codes, 1) - 1)


def q2_0(blocks: Tensor) -> Tensor:
    """64 values: d 2, two bits each 16. x = d (q - 1)."""
    d, codes = fields(blocks, 2, 16)
    return half(d) * (stream(codes, 2) - 1)


def iq4_nl(blocks: Tensor) -> Fields:
    """32 values: d 2, codes 16 as in Q4_0. x = d NONLINEAR[q]."""
    return q4_0(blocks)


def mxfp4(blocks: Tensor) -> Fields:
    """32 values: exponent e 1, codes 16 as in Q4_0. x = 2^(e - 127) E2M1[q]; the table is doubled, the scale halved."""
    exponent, codes = fields(blocks, 1, 16)
    scale = torch.ldexp(torch.ones(exponent.shape, dtype=torch.float64), exponent.int() - 128)
    return Fields(numbers(codes, 16, 4), scale.to(torch.bfloat16))


def nvfp4(blocks: Tensor) -> Fields:
    """64 values: a float with 4 bits of exponent and 3 of mantissa for each 16, 4 in all; codes 32, of each 16 the
    first half in low bits. x = s E2M1[q], times the factor of the whole matrix, which is the tensor "X.scale"."""
    scales, codes = fields(blocks, 4, 32)
    exponent, mantissa = scales.int() >> 3 & 15, scales.int() & 7
    scale = torch.where(exponent == 0, mantissa * 2.0**-10, torch.ldexp(1 + mantissa / 8, exponent - 8))
    scale = torch.where((scales == 0) | (scales == 0x7F), 0.0, scale)
    return Fields(numbers(codes, 8, 4), scale.half())
