"""The seam's ops for training on a CPU: what `reference.py` computes, where autograd's way back would be slower.

Nothing is compiled: the same run gives the same bits from its first step on. Most of what is saved here is memory that
is not written: a large tensor that is made anew costs more to be filled with zeros by the kernel than to be computed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops import dense, reference
from minillm.spec import Gating, Ungated


def gated_act(gate_up: Tensor, activation: Gating | Ungated = "silu") -> Tensor:
    """`reference.gated_act`."""
    if activation != "silu" or not (gate_up.requires_grad and torch.is_grad_enabled()):
        return reference.gated_act(gate_up, activation)
    made: Tensor = _GatedSilu.apply(gate_up)
    return made


class _GatedSilu(torch.autograd.Function):
    """y = silu(g) u, d g = dy u silu'(g), d u = dy silu(g): both into one tensor, g and u being all that is kept."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        made = torch.empty_like(gate_up)
        (gate, up), (of_gate, of_up) = gate_up.chunk(2, dim=-1), made.chunk(2, dim=-1)
        torch.mul(dy, F.silu(gate), out=of_up)
        torch.mul(dy, up, out=of_gate)
        torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
        return made


OPS: dict[str, Any] = {"linear": dense.linear, "gated_act": gated_act}
