"""RMSNorm as a module: the weight, and the spec's numbers handed to the op."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm import spec
from minillm.ops import Ops


class Norm(nn.Module):
    """y = (offset + weight) * x / rms(x) over the last dimension, of `size` values."""

    def __init__(self, norm: spec.Norm, size: int, ops: Ops):
        super().__init__()
        self.spec = norm
        self.ops = ops
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.spec.eps, self.spec.offset, self.spec.cast)
