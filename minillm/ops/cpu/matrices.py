"""Products with plain matrices on a CPU, those of experts too, through the compiled loops of `minillm/ops/cpu/loops/`
for few rows and through oneDNN for many. See `ops/cpu/ops.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.ops import grouped
from minillm.ops.cpu import loops
from minillm.ops.cpu.arrays import LIKE, address
from minillm.spec import CappedSwiGLU, ClampedSwiGLU, Gating, Ungated

FEW_ROWS = 32  # more are oneDNN's
WIDENED = 2**23  # values of a matrix that are fp32 at a time
OWN_MEMORY = (Tensor, nn.Parameter)  # a subclass may have none, or other values in it


def plain(*tensors: Tensor | None) -> bool:
    """Whether a loop can run over these: `here`, contiguous, of one dtype that it knows, not to be differentiated."""
    given = [each for each in tensors if each is not None]
    tracked = torch.is_grad_enabled() and any(each.requires_grad for each in given)
    dtype = given[0].dtype
    alike = all(each.dtype == dtype and each.is_contiguous() for each in given)
    return dtype in LIKE and not tracked and alike and here(*given)


def here(*tensors: Tensor | None) -> bool:
    """Whether all lie in this machine's memory. A loop takes an address as it is: one on another device, or of a tensor
    without values, as meta and fake ones are, would end the process."""
    return all(each is None or (type(each) in OWN_MEMORY and each.is_cpu) for each in tensors)


def located(x: Tensor | None) -> tuple[int, int]:
    """Where a tensor begins, and how many values it has; zeros for None."""
    return (0, 0) if x is None else (x.data_ptr(), x.numel())


def few(x: Tensor) -> bool:
    return 0 < x.numel() <= FEW_ROWS * x.shape[-1]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.linear`."""
    if not plain(x, weight, bias):
        return F.linear(x, weight, bias)
    if not few(x):
        return many(x, weight, bias)
    outputs, inputs = weight.shape
    y = x.new_empty(*x.shape[:-1], outputs)
    if outputs:
        at = [address(each) for each in (x, weight, bias, y)]
        loops.linear.linear(*at, x.numel() // inputs, inputs, outputs, LIKE[x.dtype])
    return y


def fast(x: Tensor) -> Tensor:
    """x in a type that this processor multiplies."""
    return x if loops.dots.NATIVE_BF16 else x.float()


def many(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.linear` for many rows of x."""
    if fast(x).dtype == x.dtype:
        return F.linear(x, weight, bias)
    return in_pieces(x, len(weight), lambda some, dtype: weight[some].to(dtype), bias)


def in_pieces(
    x: Tensor, outputs: int, rows: Callable[[slice, torch.dtype], Tensor], bias: Tensor | None = None
) -> Tensor:
    """The same of rows of W that are there once they are asked for. Where the processor multiplies no bf16, oneDNN
    takes four times as long with that as with fp32: they are to be that, a multiple of 16 at a time."""
    wide = fast(x)
    if wide.dtype == x.dtype:
        return F.linear(x, rows(slice(0, outputs), x.dtype), bias)
    y, step = x.new_empty(*x.shape[:-1], outputs), max(WIDENED // x.shape[-1] // 16, 1) * 16
    for start in range(0, outputs, step):
        some = slice(start, min(start + step, outputs))
        y[..., some] = F.linear(wide, rows(some, wide.dtype), None if bias is None else bias[some].to(wide.dtype))
    return y


def activation_number(activation: Gating | Ungated) -> tuple[int, Any, Any] | None:
    """What the loops call an activation; None for one that they do not have."""
    if isinstance(activation, ClampedSwiGLU):
        kind = {0.0: loops.pointwise.UNSHIFTED, 1.0: loops.pointwise.CLAMPED}.get(activation.shift)
        return None if kind is None else (kind, np.float32(activation.limit), np.float32(activation.alpha))
    if isinstance(activation, CappedSwiGLU):
        return loops.pointwise.CAPPED, np.float32(activation.limit), np.float32(0)
    kinds = {"silu": loops.pointwise.SILU, "gelu_tanh": loops.pointwise.GELU_TANH}
    return (kinds[activation], np.float32(0), np.float32(0)) if activation in kinds else None


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: Any,
    down: Any,
    activation: Gating | Ungated,
    biases: tuple[Tensor, Tensor] | None = None,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`reference.experts`."""
    numbers = activation_number(activation)
    known = isinstance(gate_up, Tensor) and isinstance(down, Tensor) and plain(gate_up, down)
    fits = few(x) and plain(x, *(biases or ())) and plain(weights) and chosen.is_contiguous() and here(chosen)
    if not (numbers and known and fits):
        if numbers and biases is None and _in_tiles(x, chosen, weights, gate_up, down):
            return _many_tokens(x, chosen, weights, gate_up, down, numbers)
        if not (known and x.dtype in LIKE and here(x)):
            return grouped.experts(x, chosen, weights, gate_up, down, activation, biases, places)
        wide = fast(x)
        gate_up, down = (each if each.dtype == wide.dtype else InType(each, wide.dtype) for each in (gate_up, down))
        biases = biases and (biases[0].to(wide.dtype), biases[1].to(wide.dtype))
        return grouped.experts(wide, chosen, weights, gate_up, down, activation, biases, places).to(x.dtype)
    hidden, inner = x.shape[1], gate_up.shape[1] // 2
    y = torch.empty_like(x)
    at = [address(each) for each in (x, chosen, weights, gate_up, down, y)]
    bias_at = tuple(number for each in biases or (None, None) for number in located(each))
    sizes = (len(x), chosen.shape[1], hidden, inner, len(gate_up))
    loops.experts.experts(*at, bias_at, sizes, numbers, LIKE[x.dtype], LIKE[gate_up.dtype])
    return y


@dataclass(frozen=True)
class InType:
    """Any matrices `[E, O, I]`; the one that is asked for is in this type."""

    held: Any
    dtype: torch.dtype

    def __getitem__(self, expert: int, /) -> Tensor:
        return self.held[expert].to(self.dtype)


def _in_tiles(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Any, down: Any) -> bool:
    """Whether `loops/grouped.py` can do it."""
    given = x, gate_up, down
    held = not all(isinstance(each, Tensor) and each.dtype == torch.bfloat16 for each in given)
    if held or not loops.dots.NATIVE_BF16 or len(x) == 0:
        return False
    return plain(*given) and plain(weights) and here(chosen) and x.shape[1] % 16 == 0 and gate_up.shape[1] % 8 == 0


def _many_tokens(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: Any) -> Tensor:
    count, hidden, inner = down.shape
    picks = chosen.flatten()
    order, first = picks.argsort(stable=True), F.pad(torch.bincount(picks, minlength=count).cumsum(0), (1, 0))
    y = torch.empty_like(x)
    at = tuple(address(each) for each in (x, order, first, weights, gate_up, down, y))
    sizes = (len(x), chosen.shape[1], hidden, inner, count, torch.get_num_threads())
    loops.grouped.experts(at, sizes, activation, LIKE[x.dtype])
    return y
