"""Products whose inputs and outputs are clamped (Gemma 4's smaller towers, 2026)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.linear import Linear
from minillm.ops import REFERENCE, Ops
from minillm.spec.media import BOUNDS


class Clipped(Linear):
    """x `[..., in_features]` -> `[..., out_features]`, without bias. Each part has four bounds of its own."""

    def __init__(self, in_features: int, out_features: int | Mapping[str, int], ops: Ops = REFERENCE):
        super().__init__(in_features, out_features, ops)
        self.names = [f"{part} {bound}".strip() for part in self.parts or {"": 0} for bound in BOUNDS]
        self.bounds = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, x: Tensor) -> Tensor:
        sizes = list((self.parts or {"": len(self.weight)}).values())
        made = []
        for weight, bounds in zip(self.weight.split(sizes), self.bounds.view(-1, len(BOUNDS)), strict=True):
            low, high, least, most = bounds
            made.append(F.linear(x.clamp(low, high), weight).clamp(least, most))
        return torch.cat(made, dim=-1)

    def blocks(self, name: str) -> dict[str, int] | None:
        """The named row blocks of a parameter, in order; None where it is one block."""
        return dict.fromkeys(self.names, 1) if name == "bounds" else self.parts


def clip(layers: nn.Module, ops: Ops = REFERENCE) -> None:
    """Put them in the place of all products of these layers, which have no biases."""
    for module in [*layers.modules()]:
        for name, each in [*module.named_children()]:
            if isinstance(each, Linear):
                setattr(module, name, Clipped(each.weight.shape[1], each.parts or len(each.weight), ops))
