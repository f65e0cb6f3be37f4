"""MXFP4: four-bit floats in blocks of 32 that share a power of two (Open Compute Project, Microscaling Formats v1.0).

A value has a sign, two bits of exponent and one of fraction: ±0, 0.5, 1, 1.5, 2, 3, 4 or 6. A tensor `X [..., N]` is
stored as `X_blocks`, uint8 `[..., N / 32, 16]`, two values in a byte, the first of them in its low half, and as
`X_scales`, uint8 `[..., N / 32]`, where s stands for 2^(s - 127), and 255 for NaN:

    X[..., 32 g + n] = value(nibble n of blocks[..., g]) * 2^(scales[..., g] - 127)

All of that is exact in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

TITLE = "MXFP4"
NAME = "U8"  # in the words of safetensors
SCALE_NAMES: tuple[str, ...] = ("U8",)
BLOCKS = "blocks of 32"
BLOCK = 32
MAX_SCALE = 252  # 6 * 2^(252 - 127) < 2^128
BLOCKS_AT_ONCE = 2**18  # bounds the fp32 copy while a large tensor is dequantised

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*MAGNITUDES, *(-each for each in MAGNITUDES))
# Two fp32 values for each byte, side by side in one int64: a table of single numbers is looked up five times as fast.
PAIRS = torch.tensor([(VALUES[byte & 15], VALUES[byte >> 4]) for byte in range(256)]).view(torch.int64).flatten()


def matrix_of(scale: str) -> str | None:
    """The tensor that factors of this name belong to; None if it is no such name."""
    return f"{scale.removesuffix('_scales')}_blocks" if scale.endswith("_scales") else None


def scale_of(matrix: str) -> str | None:
    return f"{matrix.removesuffix('_blocks')}_scales" if matrix.endswith("_blocks") else None


def unfit(shape: tuple[int, ...]) -> str | None:
    """Why no tensor of this shape can be stored so; None if one can."""
    return f"rows of {shape[-1]} values are no whole blocks of {BLOCK}" if shape[-1] % BLOCK else None


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*scale_shape(shape), BLOCK // 2)


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], shape[-1] // BLOCK)


def sound(scales: Tensor) -> bool:
    """Whether these can be factors: numbers, with which a block's largest value is finite in fp32."""
    return bool((scales <= MAX_SCALE).all())


def values(stored: Tensor) -> Tensor:
    """uint8 `[..., N / 2]` -> what its halves stand for, fp32 `[..., N]`."""
    pairs = PAIRS.to(stored.device).index_select(0, stored.flatten().int())
    return pairs.view(torch.float32).view(*stored.shape[:-1], -1)


def dequantise(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 `[..., G, 16]` and uint8 `[..., G]` -> `[..., 32 G]` as `dtype`."""
    result = torch.empty(*blocks.shape[:-1], BLOCK, dtype=dtype, device=blocks.device)
    parts = blocks.flatten(0, -2), scales.flatten(), result.flatten(0, -2)
    for stored, scale, into in zip(*(part.split(BLOCKS_AT_ONCE) for part in parts), strict=True):
        factors = scale.view(torch.float8_e8m0fnu).float()
        into.copy_(values(stored).mul_(factors[:, None]))
    return result.flatten(-2)
