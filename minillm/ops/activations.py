"""What a feed-forward does to each value, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.spec import XIELU, PlainActivation


def activate(x: Tensor, activation: PlainActivation) -> Tensor:
    """silu(x) = x sigmoid(x), gelu(x) = x Phi(x), exact, by its tanh approximation or as x sigmoid(1.702 x),
    relu(x) = max(x, 0), or its square."""
    if activation in ("relu", "relu2"):
        y = F.relu(x)
        return y if activation == "relu" else y.square()
    if activation == "silu":
        return F.silu(x)
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def xielu(x: Tensor, above: Tensor, below: Tensor, made: XIELU) -> Tensor:
    """`spec.XIELU` of x, with its learned numbers t and s, `[1]` each in x's dtype."""
    raised = torch.expm1(x.clamp(max=made.least)) - x
    bent = torch.where(x > 0, F.softplus(above) * x * x, (made.linear + F.softplus(below)) * raised)
    return bent + made.linear * x
