"""Tensors made by hand, as formats see those of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.weights import formats
from minillm.weights.formats.packed import Seen
from minillm.weights.tensorfile import NAMES


@dataclass(frozen=True)
class InMemory:
    """A tensor with the methods of `source.InFile`."""

    tensor: Tensor

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def fresh(self) -> InMemory:
        return self

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.tensor.flatten()[start:stop]


def seen(tensors: Mapping[str, Tensor]) -> dict[str, Seen]:
    return {name: Seen(tuple(t.shape), NAMES[t.dtype], InMemory(t)) for name, t in tensors.items()}


def dequantised(tensors: Mapping[str, Tensor], section: Mapping[str, Any]) -> Tensor:
    """The only matrix of a module "m." with these tensors."""
    named = {f"m.{ending}": tensor for ending, tensor in tensors.items()}
    ((name, packed),) = formats.gathered(seen(named), section).items()
    assert name == "m.weight"
    made = packed.dequantise({part: named[each] for part, each in packed.parts.items()})
    assert (made.dtype, tuple(made.shape)) == (torch.float32, packed.shape)
    return made


def group(**weights: Any) -> dict[str, Any]:
    """What compressed-tensors says of one group of matrices."""
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
