"""The quantised formats that tensors of a checkpoint may have, told apart by what they call their factors.

Each is a module with the names and functions of `Scheme`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from minillm.weights import fp8, mxfp4
from minillm.weights.checkpoint import TensorInfo


class Scheme(Protocol):
    """A format of tensors that have a companion with their factors. Shapes are those of plain tensors."""

    TITLE: str
    NAME: str  # the type of the tensor in the words of safetensors
    SCALE_NAMES: tuple[str, ...]  # and what those of the factors may be
    BLOCKS: str

    def matrix_of(self, scale: str, /) -> str | None: ...
    def scale_of(self, matrix: str, /) -> str | None: ...
    def unfit(self, shape: tuple[int, ...], /) -> str | None: ...
    def stored_shape(self, shape: tuple[int, ...], /) -> tuple[int, ...]: ...
    def scale_shape(self, shape: tuple[int, ...], /) -> tuple[int, ...]: ...
    def sound(self, scale: Tensor, /) -> bool: ...
    def dequantise(self, stored: Tensor, scale: Tensor, dtype: torch.dtype, /) -> Tensor: ...


SCHEMES: tuple[Scheme, ...] = (fp8, mxfp4)
NAMES = {scheme.NAME for scheme in SCHEMES}


def matrix_of(scale: str) -> str | None:
    """The tensor that factors of this name belong to; None if no scheme calls them so."""
    return next((matrix for scheme in SCHEMES if (matrix := scheme.matrix_of(scale)) is not None), None)


def scheme_of(scale: str) -> Scheme:
    """The scheme whose factors have this name."""
    return next(scheme for scheme in SCHEMES if scheme.matrix_of(scale) is not None)


def faults(
    scales: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], info: Mapping[str, TensorInfo]
) -> dict[str, list[str]]:
    """Where quantised tensors and their factors do not belong together: what is wrong -> which. `scales` has the
    factors of each quantised tensor, `shapes` the plain shape of every tensor that is wanted."""
    found: dict[str, list[str]] = {}
    for scheme in SCHEMES:
        title = scheme.TITLE
        pairs = [(matrix, scale) for matrix, scale in scales.items() if scheme_of(scale) is scheme]
        found |= {
            f"{title} tensors of shapes that it has none for": [
                f"{matrix} is {list(info[matrix].shape)}: {why}"
                for matrix, _ in pairs
                if (why := scheme.unfit(shapes[matrix]))
            ],
            f"{title} factors of another shape": [
                f"{scale} is {list(info[scale].shape)}, {scheme.BLOCKS} need {list(scheme.scale_shape(shapes[matrix]))}"
                for matrix, scale in pairs
                if info[scale].shape != scheme.scale_shape(shapes[matrix])
            ],
            f"{title} factors of a type that is none for factors": [
                f"{scale} is {info[scale].dtype}" for _, scale in pairs if info[scale].dtype not in scheme.SCALE_NAMES
            ],
            f"{title} tensors without their factors": [
                f"{matrix} (expected {scheme.scale_of(matrix)})"
                for matrix in shapes
                if info[matrix].dtype == scheme.NAME and matrix not in scales and scales and scheme.scale_of(matrix)
            ],
            f"factors of a tensor that is not {title}": [
                f"{scale}: {matrix} is {info[matrix].dtype}"
                for matrix, scale in pairs
                if info[matrix].dtype != scheme.NAME
            ],
        }
    return found
