"""Norms as modules: the weights, and the spec's numbers handed to the op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm import spec
from minillm.ops import Ops, ranks


class Norm(nn.Module):
    """RMSNorm, y = (offset + weight) * x / rms(x) over the last dimension, of `size` values; the factor may be left
    out. `wide`: other ranks may have more of the values."""

    def __init__(self, norm: spec.Norm, size: int, ops: Ops, wide: bool = False):
        super().__init__()
        self.spec = norm
        self.ops = ops
        self.split = wide and ops.ranks.count > 1
        self.weight = nn.Parameter(torch.ones(size)) if norm.affine else None

    def forward(self, x: Tensor) -> Tensor:
        if self.split:
            how = (self.spec.eps, self.spec.offset, self.spec.cast)
            return ranks.rms_norm(x, self.weight, *how, self.ops.ranks)
        return self.ops.rms_norm(x, self.weight, self.spec.eps, self.spec.offset, self.spec.cast)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and the sum."""
        if self.weight is None:
            total = self.ops.add(x, residual)
            return self(total), total
        return self.ops.add_rms_norm(x, residual, self.weight, self.spec.eps, self.spec.offset, self.spec.cast)


class LayerNorm(nn.Module):
    """y = (offset + weight) * (x - mean(x)) / std(x) + bias over the last dimension, of `size` values; the factor and
    the bias may be left out. With a size (heads, values) each head has weights of its own, x `[..., heads, values]`."""

    def __init__(self, norm: spec.LayerNorm, size: int | tuple[int, int], ops: Ops, wide: bool = False):
        super().__init__()
        self.spec = norm
        self.weight = nn.Parameter(torch.ones(size)) if norm.affine else None
        self.bias = nn.Parameter(torch.zeros(size)) if norm.affine and norm.bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None and self.weight.dim() > 1:
            y = F.layer_norm(x.float(), x.shape[-1:], eps=self.spec.eps) * (self.weight.float() + self.spec.offset)
            return (y if self.bias is None else y + self.bias.float()).to(x.dtype)
        weight = self.weight + self.spec.offset if self.weight is not None and self.spec.offset else self.weight
        return F.layer_norm(x, x.shape[-1:], weight, self.bias, self.spec.eps)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and the sum."""
        total = x + residual
        return self(total), total

    def blocks(self, name: str) -> dict[str, int] | None:
        """The heads, a row each, where they have weights of their own."""
        parameter = getattr(self, name)
        return {str(head): 1 for head in range(len(parameter))} if parameter.dim() > 1 else None


class NoNorm(nn.Module):
    """Where a layer has none."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, twice."""
        total = x + residual
        return total, total


NORMS: dict[type, Callable[[Any, Any, Ops, bool], Norm | LayerNorm]] = {spec.Norm: Norm, spec.LayerNorm: LayerNorm}


def norm(
    made: spec.Norm | spec.LayerNorm | None, size: int | tuple[int, int], ops: Ops, wide: bool = False
) -> Norm | LayerNorm | NoNorm:
    """The module of a norm over `size` values; one that changes nothing for None."""
    return NoNorm() if made is None else NORMS[type(made)](made, size, ops, wide)
