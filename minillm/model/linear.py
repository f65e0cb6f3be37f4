"""y = x Wᵀ + b, where W may hold several of a checkpoint's matrices one under the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minillm.model import held
from minillm.model.lora.adapted import adapted
from minillm.ops import REFERENCE, Ops


class Linear(nn.Module):
    """x `[..., in_features]` -> `[..., out_features]`.

    `parts` names the row blocks of a fused matrix in order, for example {"q": 896, "k": 128, "v": 128}: a checkpoint
    fills each block by its name, and one product computes them all.
    """

    MULTIPLIED = ("weight",)

    def __init__(
        self, in_features: int, out_features: int | Mapping[str, int], ops: Ops = REFERENCE, bias: bool = False
    ):
        super().__init__()
        self.ops = ops
        self.parts = dict(out_features) if isinstance(out_features, Mapping) else None
        rows = out_features if isinstance(out_features, int) else sum(out_features.values())
        self.weight = nn.Parameter(torch.empty(rows, in_features))
        self.bias = nn.Parameter(torch.zeros(rows)) if bias else None
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        y = held.product(self, "weight", self.ops, x, self.bias)
        changed = adapted(self)
        return y if changed is None else changed.added(self, "weight", x, y)

    def blocks(self, name: str) -> dict[str, int] | None:
        """The named row blocks of a parameter, in order; None where it is one block."""
        return self.parts
