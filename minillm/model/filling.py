"""What a checkpoint has to fill: a model before its weights are there, and the places in it that they go to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from minillm.model.linear import Linear
from minillm.model.moe import Experts
from minillm.model.norm import LayerNorm
from minillm.model.recurrent.added import AddedConv
from minillm.model.recurrent.stateful import ShortConv
from minillm.weights.rules import Destination

M = TypeVar("M", bound=nn.Module)


def on_meta(make: Callable[[], M], dtype: torch.dtype) -> M:
    """A model without memory: every parameter on the meta device, in `dtype`, or in fp32 where its module says so.

    PyTorch's default dtype, which would do the same, is that of all threads.
    """
    with torch.device("meta"):
        model = make()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name not in getattr(module, "FP32", ()):
                parameter.data = parameter.data.to(dtype)
    return model


def destinations(model: nn.Module) -> dict[str, Destination]:
    """Where a checkpoint's tensors go: each parameter, or each named row block of a fused one as "name[part]"."""
    found: dict[str, Destination] = {}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module, width, start = model.get_submodule(owner), parameter.shape[1:][-1:], 0
        parts = module.blocks(leaf) if isinstance(module, (Linear, Experts, ShortConv, AddedConv, LayerNorm)) else None
        for part, rows in (parts or {"": parameter.shape[0]}).items():
            key = f"{name}[{part}]" if part else name
            found[key] = Destination(name, start, (rows, *width), None, tuple(parameter.shape))
            start += rows
    return found
