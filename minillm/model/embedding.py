"""A table with a row for each token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.held import held_in, lookup
from minillm.model.lora.adapted import adapted


class Embedding(nn.Module):
    """tokens int64 `[B, T]` -> rows of `weight`, `[B, T, E]`.

    Not nn.Embedding: that draws its first values even on the meta device, where PyTorch then loads 150 MB of Python.
    """

    MULTIPLIED = ("weight",)  # where there is no other head

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        y = lookup(self, "weight", tokens_BT) if held_in(self) else F.embedding(tokens_BT, self.weight)
        changed = adapted(self)
        return y if changed is None else changed.looked_up(tokens_BT, y)

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows."""
        held = held_in(self).get("weight")
        return self.weight.dtype if held is None else held.dtype
