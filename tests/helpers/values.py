"""The parameters of a model as numbers, whatever form they are held in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm.model.held import matrix, plain_shapes


def values(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """By the names that they have where none is held; those that are not held as they are."""
    found = {}
    for name in plain_shapes(model):
        owner, _, leaf = name.rpartition(".")
        found[name] = matrix(model.get_submodule(owner), leaf, dtype)
    return found
