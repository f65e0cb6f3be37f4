"""Products with matrices of e4m3 and factors of rows on a CPU, those of experts too, through `loops/fp8.py`: as they
lie for few rows, written out for many."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minillm.ops import grouped, reference
from minillm.ops.cpu import loops
from minillm.ops.cpu.arrays import LIKE, address
from minillm.ops.cpu.matrices import few, here, in_pieces, plain
from minillm.ops.stacked import HeldMatrices
from minillm.spec import Gating, Ungated
from minillm.weights import fp8

VECTOR = 16  # columns: groups of which end where one does


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, width: int = fp8.BLOCK) -> Tensor:
    """`reference.fp8_linear`."""
    if not (_taken(weight, scale, width) and plain(x, bias) and x.numel() and len(weight)):
        return reference.fp8_linear(x, weight, scale, bias, width)
    if not few(x):
        return in_pieces(x, len(weight), partial(_rows, weight, scale, width), bias)
    y = x.new_empty(*x.shape[:-1], len(weight))
    at, rows = (address(weight), address(scale)), x.numel() // x.shape[-1]
    loops.fp8.linear(address(x), at, address(bias), address(y), rows, (*weight.shape, width), LIKE[x.dtype])
    return y


def _taken(weight: Tensor, scale: Tensor, width: int) -> bool:
    """Whether the loops take a matrix."""
    groups = -(-weight.shape[1] // width) if width else 1
    fits = scale.shape == (len(weight), groups) and width % VECTOR == 0 and scale.dtype == torch.float32
    return fits and weight.is_contiguous() and here(weight) and plain(scale)


def _rows(weight: Tensor, scale: Tensor, width: int, some: slice, dtype: torch.dtype) -> Tensor:
    """Some rows of a matrix, written out."""
    chosen, factors = weight[some], scale[some]
    made = torch.empty(chosen.shape, dtype=dtype, device="cpu")
    loops.fp8.dequantise((address(chosen), address(factors)), address(made), (*chosen.shape, width), LIKE[dtype])
    return made


def are_fp8(x: Tensor, *given: Any) -> bool:
    """Whether these are all matrices `[E, O, I]` that the loops take, for such an x."""
    return x.dtype in LIKE and all(
        isinstance(each, HeldMatrices) and isinstance(each.form, fp8.Fp8) and _taken(*_one(each, 0)) for each in given
    )


def _one(held: HeldMatrices, expert: int) -> tuple[Tensor, Tensor, int]:
    assert isinstance(held.form, fp8.Fp8)
    return held.parts[""][expert], held.parts["_scale"][expert], held.form.width


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: HeldMatrices,
    down: HeldMatrices,
    activation: Gating | Ungated,
    biases: tuple[Tensor, Tensor] | None = None,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`reference.experts` of matrices that `are_fp8`; each token's sum is in fp32."""
    if not few(x):
        lying = _Lying(gate_up), _Lying(down)
        return grouped.experts(x, chosen, weights, *lying, activation, biases, places)
    y = torch.zeros(x.shape, dtype=torch.float32, device="cpu")
    for expert in sorted(set(chosen.flatten().tolist())):
        tokens, picks = (chosen == expert).nonzero(as_tuple=True)
        inner, outer = (bias[expert] for bias in biases) if biases else (None, None)
        pairs = fp8_linear(x[tokens], *_given(gate_up, expert, inner))
        made = fp8_linear(reference.gated_act(pairs, activation), *_given(down, expert, outer))
        y.index_add_(0, tokens, made.float() * weights[tokens, picks].unsqueeze(1))
    return y.to(x.dtype)


def _given(held: HeldMatrices, expert: int, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, int]:
    weight, scale, width = _one(held, expert)
    return weight, scale, bias, width


@dataclass(frozen=True)
class _Lying:
    """Matrices `[E, O, I]` that are multiplied as they lie."""

    held: HeldMatrices

    def product(self, expert: int, x: Tensor, bias: Tensor | None) -> Tensor:
        return fp8_linear(x, *_given(self.held, expert, bias))
