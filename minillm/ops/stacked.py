"""The quantised matrices of a layer's experts, stacked as they lie in memory: what the op `experts` is given instead
of a tensor `[E, O, I]`. Asked for one expert, each gives its matrix `[O, I]`, dequantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.weights.forms import Form
from minillm.weights.grouped import Grouped


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
