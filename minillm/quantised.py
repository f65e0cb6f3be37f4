"""Parameters that stay quantised in memory and are dequantised each time they are used, or multiplied as they are.

A held parameter `name` of a module is fp8 and has a companion `name_scale`, with the factors of `weights/fp8.py` for
each of its rows. What is saved is memory; what it costs is arithmetic at every use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minillm.weights import fp8


def hold(model: nn.Module, names: Iterable[str]) -> None:
    """Make the named parameters of a model on the meta device fp8, each with its factors beside it, as far as their
    modules can use them so: those that they list as HOLDABLE."""
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module, shape = model.get_submodule(owner), model.get_parameter(name).shape
        if leaf not in getattr(module, "HOLDABLE", ()):
            continue
        scale = torch.empty(*shape[:-1], -(-shape[-1] // fp8.BLOCK), dtype=torch.float32, device="meta")
        weight = torch.empty(shape, dtype=fp8.DTYPE, device="meta")
        setattr(module, leaf, nn.Parameter(weight, requires_grad=False))
        module.register_parameter(f"{leaf}_scale", nn.Parameter(scale, requires_grad=False))


def is_held(module: nn.Module, leaf: str) -> bool:
    return hasattr(module, f"{leaf}_scale")


def matrix(module: nn.Module, leaf: str, dtype: torch.dtype) -> Tensor:
    """A module's parameter `[M, N]` as numbers to compute with."""
    parameter = getattr(module, leaf)
    return (
        fp8.dequantise_rows(parameter, getattr(module, f"{leaf}_scale"), dtype) if is_held(module, leaf) else parameter
    )


def matrices(module: nn.Module, leaf: str, dtype: torch.dtype) -> Tensor | HeldMatrices:
    """A module's parameter `[E, M, N]`, to be asked for one matrix at a time."""
    parameter = getattr(module, leaf)
    return HeldMatrices(parameter, getattr(module, f"{leaf}_scale"), dtype) if is_held(module, leaf) else parameter


@dataclass(frozen=True)
class HeldMatrices:
    """fp8 `[E, M, N]` with row factors; only the matrix asked for is dequantised."""

    weight: Tensor
    scale: Tensor
    dtype: torch.dtype

    def __getitem__(self, index: int, /) -> Tensor:
        return fp8.dequantise_rows(self.weight[index], self.scale[index], self.dtype)
