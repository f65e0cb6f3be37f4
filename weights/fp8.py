"""Block-scaled FP8, as DeepSeek-V3 publishes it (arXiv:2412.19437, section 3.3).

A matrix `[M, N]` is stored as e4m3 with one fp32 factor for each block of 128 x 128, the last row and column of blocks
ragged: W[m, n] = fp8[m, n] * scale[m // 128, n // 128]. The factors of `X.weight` are the tensor `X.weight_scale_inv`,
of shape [ceil(M / 128), ceil(N / 128)]; they multiply, whatever their name says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.weights.forms import ByRows, Shapes
from minillm.weights.grouped import Fields, grouped

TITLE = "FP8"
NAME = "F8_E4M3"  # in the words of safetensors
SCALE_NAMES: tuple[str, ...] = ("F64", "F32", "F16", "BF16")
BLOCKS = "blocks of 128 x 128"
BLOCK = 128
SCALE = "_scale_inv"  # what the name of the factors adds to that of the matrix
DTYPE = torch.float8_e4m3fn
ROWS_AT_ONCE = 8 * BLOCK  # bounds the fp32 copy while a large matrix is dequantised


def matrix_of(scale: str) -> str | None:
    """The tensor that factors of this name belong to; None if it is no such name."""
    return scale.removesuffix(SCALE) if scale.endswith(SCALE) and not scale.endswith(2 * SCALE) else None


def scale_of(matrix: str) -> str:
    return f"{matrix}{SCALE}"


def unfit(shape: tuple[int, ...]) -> str | None:
    """Why no tensor of this shape can be stored so; None if one can."""
    return None if len(shape) == 2 else "it is no matrix"


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the factors of a matrix must have."""
    return tuple(-(-size // BLOCK) for size in shape)


def sound(scale: Tensor) -> bool:
    """Whether these can be factors: positive numbers."""
    return bool(((scale.float() > 0) & (scale.float() < torch.inf)).all())


def row_scales(scale: Tensor, rows: int) -> Tensor:
    """The factors `[M / 128, N / 128]` with one row for each of the matrix's `rows`, so that rows can be told apart
    when several matrices lie one under the other."""
    return scale.float().repeat_interleave(BLOCK, dim=0)[:rows]


def dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """fp8 `[M, N]` times factors `[ceil(M / 128), ceil(N / 128)]`, computed in fp32, as `dtype`."""
    return dequantise_rows(weight, row_scales(scale, weight.shape[0]), dtype)


def dequantise_rows(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """fp8 `[M, N]` times row factors `[M, ceil(N / 128)]`, computed in fp32, as `dtype`."""
    result = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for start in range(0, weight.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        factors = scale[rows].repeat_interleave(BLOCK, dim=1)[:, : weight.shape[1]]
        result[rows] = weight[rows].float() * factors
    return result


@dataclass(frozen=True)
class Fp8(ByRows):
    """The form of e4m3 values with factors of each row, one for `width` values, or for all where that is 0."""

    width: int = BLOCK

    def parts(self, shape: tuple[int, ...]) -> Shapes:
        """Shape and type of each part of matrices `[..., O, I]`."""
        count = -(-shape[-1] // self.width) if self.width else 1
        return {"": (shape, DTYPE), "_scale": ((*shape[:-1], count), torch.float32)}

    def values(self, fields: Fields) -> Tensor:
        """fp32 `[O, I]`."""
        assert fields.scale is not None
        return torch.mul(*grouped(fields.q.float(), fields.scale, self.width)).view(fields.q.shape)
