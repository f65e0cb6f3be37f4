"""The quantised matrices of a layer's experts, stacked as they lie in memory: what the op `experts` is given instead
of a tensor `[E, O, I]`. Asked for one expert, each gives its matrix `[O, I]`, dequantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.weights.forms import Form
from minillm.weights.grouped import Grouped
from minillm.weights.ints import Int4, Int8


@dataclass(frozen=True)
class HeldMatrices:
    """`parts` `[E, …]` of matrices in a form with one row for each of theirs; only the matrix asked for is
    dequantised."""

    parts: Mapping[str, Tensor]
    form: Form
    columns: int
    dtype: torch.dtype

    def __getitem__(self, expert: int, /) -> Tensor:
        found = {name: part[expert] for name, part in self.parts.items()}
        return self.form.dequantise(found, self.columns, self.dtype)


@dataclass(frozen=True)
class Int8Matrices:
    """int8 `[E, O, I]` with factors `[E, O]`; only the matrix asked for is dequantised."""

    weight: Tensor
    scale: Tensor
    dtype: torch.dtype

    def __getitem__(self, expert: int, /) -> Tensor:
        found = {"": self.weight[expert], "_scale": self.scale[expert]}
        return Int8().dequantise(found, self.weight.shape[-1], self.dtype)


@dataclass(frozen=True)
class Int4Matrices:
    """Packed `[E, O, I / 2]`, int8 scales and uint8 zeros `[E, O, I / group]`, factors fp32 `[E, O]`, `columns` is I;
    only the matrix asked for is dequantised."""

    packed: Tensor
    scale: Tensor
    factor: Tensor
    zero: Tensor | None
    group: int
    columns: int
    dtype: torch.dtype

    def __getitem__(self, expert: int, /) -> Tensor:
        found = {"": self.packed[expert], "_scale": self.scale[expert], "_factor": self.factor[expert]}
        if self.zero is not None:
            found["_zero"] = self.zero[expert]
        return Int4(self.group, self.zero is None).dequantise(found, self.columns, self.dtype)


@dataclass(frozen=True)
class GroupedMatrices:
    """`parts` `[E, …]` of matrices `[O, I]` in the form `made`, O being `outputs` and I `columns`; only the matrix
    asked for is dequantised."""

    parts: Mapping[str, Tensor]
    made: Grouped
    outputs: int
    columns: int
    dtype: torch.dtype

    def __getitem__(self, expert: int, /) -> Tensor:
        found = {name: part[expert] for name, part in self.parts.items()}
        return self.made.dequantise(found, self.columns, self.dtype, self.outputs)
