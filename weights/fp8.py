"""FP8 in memory: e4m3 values with fp32 factors of each row, one for so many of its values.

    W[o, i] = q[o, i] s[o, i // width]

Where a checkpoint has one factor for a block of several rows, each of them has it: so rows can be told apart when
several matrices lie one under the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.weights.forms import ByRows, Shapes
from minillm.weights.grouped import Fields, grouped

NAME = "F8_E4M3"  # in the words of safetensors
DTYPE = torch.float8_e4m3fn
BLOCK = 128  # rows and columns that share a factor in DeepSeek-V3 (`formats/fp8_blocks.py`)


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
