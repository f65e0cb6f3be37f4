"""A gated convolution in the place of attention (LFM2, arXiv:2511.23404): what is kept are a few positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minillm.model.attention import Step
from minillm.model.linear import Linear
from minillm.model.recurrent.stateful import Given, Stateful
from minillm.model.recurrent.states import StateCache
from minillm.ops import Ops, recurrent
from minillm.spec import GatedConv as Spec


class GatedConv(Stateful):
    """A short convolution between two gates: b, c, u = W x;  y = W_out (c * conv(b * u)). x `[B, T, E]` -> `[B, T, E]`;
    what is kept are the last products b * u."""

    def __init__(self, spec: Spec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.ops = ops
        size, kernel = spec.channels, spec.conv_kernel
        self.bcu = Linear(hidden_size, dict.fromkeys("bcu", size), ops)
        self.conv = nn.Parameter(torch.empty(size, kernel))
        if self.conv.device.type != "meta":
            nn.init.normal_(self.conv, std=kernel**-0.5)
        self.output = Linear(size, hidden_size, ops)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        if step.real is not None:  # what is not there leaves no trace: b * u of it is zero
            x = x * step.real
        return self.output(self.over((self.bcu(x),), step, cache))

    def one(self, given: Given, cache: StateCache, position_B: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.ops.gated_conv_step(*given, self.conv, cache.inputs, position_B, rows)

    def several(self, given: Given, cache: StateCache | None, first: int, real: Tensor | None = None) -> Tensor:
        b, c, u = given[0].chunk(3, dim=-1)
        return c * recurrent.causal_conv(self.before(b * u, cache, first)[0], self.conv)
