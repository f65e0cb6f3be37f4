"""Products in fp32 on a CPU through oneDNN, which is a quarter faster at them than the library behind `F.linear`: 205
against 165 GFLOP/s on two cores of an EPYC 9004, of 512 rows and the matrices of a 0.5B model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 2**24  # products of values below which it is not worth another kernel for each number of rows


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.linear`, without gradients."""
    if not _suits(x, weight):
        return F.linear(x, weight, bias)
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x.flatten(0, -2), weight, bias, "none", [], "")
    return torch.ops.aten._unsafe_view(made, (*x.shape[:-1], len(weight)))  # no view, so it can be changed in place


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.linear`, with gradients."""
    if not _suits(x, weight):
        return F.linear(x, weight, bias)
    made: Tensor = _Linear.apply(x, weight, bias)
    return made


def _suits(x: Tensor, weight: Tensor) -> bool:
    alike = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    return alike and x.dim() > 1 and x.numel() * len(weight) >= FEW and torch.backends.mkldnn.is_available()


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b, dx = dy W, dW = dyᵀ x, db = sum of dy over its rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = dy.flatten(0, -2)
        return (
            product(dy, weight.T) if of_x else None,
            rows.T @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
