"""The quantised matrices of a layer's experts, stacked as they lie in memory: what the op `experts` is given instead
of a tensor `[E, O, I]`. Asked for one expert, each gives its matrix `[O, I]`, dequantised; where a gradient is wanted
it is dequantised once more on the way back, and not kept until then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.weights.forms import Form
from minillm.weights.grouped import Grouped


class _Again(torch.autograd.Function):
    """y = x Wᵀ and dx = dy W, with W made anew for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Any, expert: int) -> Tensor:
        ctx.matrices, ctx.expert = matrices, expert
        return F.linear(x, matrices[expert])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return dy @ ctx.matrices[ctx.expert], None, None


class Stacked:
    """What both have."""

    def __getitem__(self, expert: int, /) -> Tensor:
        raise NotImplementedError

    def product(self, expert: int, x: Tensor, bias: Tensor | None) -> Tensor:
        """x `[N, I]` times the matrix of an expert, plus bias: `[N, O]`."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return F.linear(x, self[expert], bias)
        y = _Again.apply(x, self, expert)
        return y if bias is None else y + bias


@dataclass(frozen=True)
class HeldMatrices(Stacked):
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
class GroupedMatrices(Stacked):
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
