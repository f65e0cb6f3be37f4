"""A table with a row for each token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.held import held_in, lookup
from minillm.model.lora.adapted import adapted
from minillm.ops import REFERENCE, Ops


class Embedding(nn.Module):
    """tokens int64 `[B, T]` -> rows of `weight`, `[B, T, E]`.

    `share`: the first of the rows that are here and the one behind the last; other ranks have the others.

    Not nn.Embedding: that draws its first values even on the meta device, where PyTorch then loads 150 MB of Python.
    """

    MULTIPLIED = ("weight",)  # where there is no other head

    def __init__(self, vocab_size: int, hidden_size: int, ops: Ops = REFERENCE, share: tuple[int, int] | None = None):
        super().__init__()
        self.ops, self.share = ops, share
        first, end = share or (0, vocab_size)
        self.weight = nn.Parameter(torch.empty(end - first, hidden_size))
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        if self.share is None:
            return self._looked_up(tokens_BT)
        first, end = self.share
        if first == end:  # of a stage, which is given hidden states
            return self.weight.new_zeros(*tokens_BT.shape, self.weight.shape[1])
        here = (tokens_BT >= first) & (tokens_BT < end)
        y = self._looked_up((tokens_BT - first).where(here, 0))
        return self.ops.ranks.total(y * here.unsqueeze(-1))

    def _looked_up(self, tokens_BT: Tensor) -> Tensor:
        y = lookup(self, "weight", tokens_BT) if held_in(self) else F.embedding(tokens_BT, self.weight)
        changed = adapted(self)
        return y if changed is None else changed.looked_up(tokens_BT, y)

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows."""
        held = held_in(self).get("weight")
        return self.weight.dtype if held is None else held.dtype
