"""A short convolution that is added to what it is made of (Inkling, 2026): y = x + conv(x), in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minillm.model.ragged import Step
from minillm.model.recurrent.stateful import Given, Stateful
from minillm.model.recurrent.states import StateCache
from minillm.ops import recurrent
from minillm.spec import AddedConv as Spec


class AddedConv(Stateful):
    """x `[B, T, C]` -> `[B, T, C]` of its dtype; weight fp32 `[C, J]`, with `parts` as in `Linear`. What is kept are
    the last positions of x."""

    FP32 = ("weight",)

    def __init__(self, spec: Spec, parts: dict[str, int] | None = None):
        super().__init__()
        self.spec = spec
        self.parts = parts
        self.weight = nn.Parameter(torch.empty(spec.channels, spec.conv_kernel, dtype=torch.float32))
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=spec.conv_kernel**-0.5)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        if step.real is not None:  # what is not there leaves no trace
            x = x * step.real
        return self.over((x,), step, cache)

    def one(self, given: Given, cache: StateCache, position_B: Tensor, rows: Tensor | None = None) -> Tensor:
        seen = recurrent.preceded(given[0], cache.inputs, position_B, rows, self.spec.conv_kernel)
        return recurrent.added_conv(seen, self.weight)

    def several(self, given: Given, cache: StateCache | None, first: int, real: Tensor | None = None) -> Tensor:
        return recurrent.added_conv(self.before(given[0], cache, first)[0], self.weight)

    def blocks(self, name: str) -> dict[str, int] | None:
        """The named row blocks of the weight, in order."""
        return self.parts
