"""From what a tower gives for neighbouring patches or frames to one embedding of the decoder."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from minillm.model.linear import Linear
from minillm.model.norm import norm
from minillm.ops import REFERENCE, Ops
from minillm.ops.activations import activate
from minillm.spec.media import Projector as Spec


class Projector(nn.Module):
    """x `[n, gathered, E]` -> `[n, widths[-1]]`, as `spec.media.Projector` has it."""

    def __init__(self, made: Spec, hidden_size: int, ops: Ops = REFERENCE):
        super().__init__()
        self.spec = made
        wide = hidden_size * made.gathered if made.pool == "concat" else hidden_size
        self.norm = norm(made.norm, hidden_size if made.norm_of == "each" else wide, ops)
        shift = factor = None
        if made.standardized:
            shift, factor = (nn.Parameter(torch.zeros(hidden_size)) for _ in range(2))
        self.shift, self.factor = shift, factor
        self.mix = Linear(wide, made.mixed, ops) if made.mixed else None
        sizes = [made.mixed or wide, *made.widths]
        self.maps = nn.ModuleList(Linear(one, other, ops, made.bias) for one, other in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x) if self.spec.norm_of == "each" else x
        x = x.flatten(1) if self.spec.pool == "concat" else self._averaged(x)
        x = self.norm(x) if self.spec.norm_of == "gathered" else x
        x = x if self.mix is None else self.mix(x)
        for index, each in enumerate(self.maps):
            x = each(activate(x, self.spec.activation) if index else x)
        return x

    def _averaged(self, x: Tensor) -> Tensor:
        mean = x.mean(1)
        if self.spec.scale == 1 and self.shift is None:
            return mean
        scaled = mean.float() * self.spec.scale  # in half precision it may be too large
        if self.shift is not None and self.factor is not None:
            scaled = (scaled - self.shift.float()) * self.factor.float()
        return scaled.to(x)
