"""Products on a CPU: with plain, int8 and int4 matrices, and with those of experts, through the compiled loops of
`minillm/ops/cpu/loops/` for few rows and through oneDNN for many. See `ops/cpu/ops.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.ops import grouped, reference
from minillm.ops.cpu import loops
from minillm.ops.cpu.arrays import INT4, INT8, LIKE, address
from minillm.ops.stacked import Int4Matrices, Int8Matrices
from minillm.spec import Activation, ClampedSwiGLU

FEW_ROWS = 16  # more are oneDNN's
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


def _product(x: Tensor, matrix: tuple[Any, ...], like: Any, outputs: int, bias: Tensor | None) -> Tensor:
    inputs = x.shape[-1]
    y = x.new_empty(*x.shape[:-1], outputs)
    if y.numel():
        given = (address(x), matrix, address(bias), address(y))
        loops.linear.linear(*given, x.numel() // inputs, inputs, outputs, LIKE[x.dtype], like)
    return y


def located(x: Tensor | None) -> tuple[int, int]:
    """Where a tensor begins, and how many values it has; zeros for None."""
    return (0, 0) if x is None else (x.data_ptr(), x.numel())


def _laid(
    weight: Tensor,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    factor: Tensor | None = None,
    group: int = 1,
) -> tuple[Any, ...]:
    """A matrix as the loops take it."""
    return (*located(weight), *located(scale), *located(zero), *located(factor), group)


def few(x: Tensor) -> bool:
    return 0 < x.numel() <= FEW_ROWS * x.shape[-1]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.linear`."""
    if few(x) and plain(x, weight, bias):
        return _product(x, _laid(weight), LIKE[x.dtype], len(weight), bias)
    return many(x, weight, bias) if plain(x, weight, bias) else F.linear(x, weight, bias)


def fast(x: Tensor) -> Tensor:
    """x in a type that this processor multiplies."""
    return x if loops.dots.NATIVE_BF16 else x.float()


def many(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.linear` for many rows of x. Where the processor multiplies no bf16, oneDNN takes four times as long
    with that as with fp32: rows of W become that, some at a time."""
    wide = fast(x)
    if wide.dtype == x.dtype:
        return F.linear(x, weight, bias)
    y = x.new_empty(*x.shape[:-1], len(weight))
    step = max(WIDENED // weight.shape[1], 1)
    for start in range(0, len(weight), step):
        some = slice(start, start + step)
        y[..., some] = F.linear(wide, weight[some].float(), None if bias is None else bias[some].float())
    return y


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.int8_linear`."""
    if plain(x, bias) and plain(scale) and weight.is_contiguous() and here(weight):
        return _quantised_product(x, _laid(weight, factor=scale), INT8, len(weight), bias)
    return reference.int8_linear(x, weight, scale, bias)


def int4_linear(
    x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int, bias: Tensor | None = None,
    factor: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`reference.int4_linear`."""
    if plain(x, bias) and _known_int4(packed, scale, zero, factor, group):
        return _quantised_product(x, _laid(packed, scale, zero, factor, group), INT4, len(packed), bias)
    return reference.int4_linear(x, packed, scale, zero, group, bias, factor)


def _quantised_product(x: Tensor, matrix: tuple[Any, ...], like: Any, outputs: int, bias: Tensor | None) -> Tensor:
    """As it lies for few rows; for many rows the matrix is written out, which they pay for together."""
    if few(x):
        return _product(x, matrix, like, outputs, bias)
    wide = fast(x)
    made = _written(matrix, like, outputs, x.shape[-1], wide.dtype)
    return F.linear(wide, made, None if bias is None else bias.to(wide.dtype)).to(x.dtype)


def _written(matrix: tuple[Any, ...], like: Any, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    weight = torch.empty(outputs, inputs, dtype=dtype, device="cpu")
    if weight.numel():
        loops.dequantise.dequantise(matrix, address(weight), outputs, inputs, like, LIKE[dtype])
    return weight


def _known_int4(packed: Tensor, scale: Tensor, zero: Tensor | None, factor: Tensor | None, group: int) -> bool:
    """Whether the loops take this format: int8 scales, uint8 zeros, and groups of 16, 32, 64, 128, …"""
    parts = (packed, torch.uint8), (scale, torch.int8), (zero, torch.uint8), (factor, torch.float32)
    known = all(each is None or (each.dtype == dtype and each.is_contiguous() and here(each)) for each, dtype in parts)
    return known and factor is not None and group >= 16 and group & (group - 1) == 0


def activation_number(activation: Activation | ClampedSwiGLU) -> tuple[int, Any, Any] | None:
    """What the loops call an activation; None for one that they do not have."""
    if isinstance(activation, ClampedSwiGLU):
        return loops.pointwise.CLAMPED, np.float32(activation.limit), np.float32(activation.alpha)
    kinds = {"silu": loops.pointwise.SILU, "gelu_tanh": loops.pointwise.GELU_TANH}
    return (kinds[activation], np.float32(0), np.float32(0)) if activation in kinds else None


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: Any,
    down: Any,
    activation: Activation | ClampedSwiGLU,
    biases: tuple[Tensor, Tensor] | None = None,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`reference.experts`."""
    numbers, into, out_of = activation_number(activation), _matrices(gate_up), _matrices(down)
    fits = few(x) and plain(x, *(biases or ())) and plain(weights) and chosen.is_contiguous() and here(chosen)
    if not (numbers and into and out_of and fits):
        if numbers and biases is None and _in_tiles(x, chosen, weights, gate_up, down):
            return _many_tokens(x, chosen, weights, gate_up, down, numbers)
        wide = fast(x)
        if into and out_of and x.dtype in LIKE and here(x):
            gate_up, down = _WrittenOut.of(gate_up, wide.dtype), _WrittenOut.of(down, wide.dtype)
            biases = biases and (biases[0].to(wide.dtype), biases[1].to(wide.dtype))
            return grouped.experts(wide, chosen, weights, gate_up, down, activation, biases, places).to(x.dtype)
        return grouped.experts(x, chosen, weights, gate_up, down, activation, biases, places)
    hidden, inner = x.shape[1], _stored(gate_up).shape[1] // 2
    y = torch.empty_like(x)
    at = [address(each) for each in (x, chosen, weights, y)]
    bias_at = tuple(number for each in biases or (None, None) for number in located(each))
    sizes = (len(x), chosen.shape[1], hidden, inner)
    loops.experts.experts(*at, into[0], out_of[0], bias_at, sizes, numbers, LIKE[x.dtype], into[1])
    return y


@dataclass(frozen=True)
class _WrittenOut:
    """Matrices `[E, O, I]` that the loops know; the one that is asked for is written out in a type."""

    held: Tensor | Int8Matrices | Int4Matrices
    dtype: torch.dtype

    @classmethod
    def of(cls, matrices: Any, dtype: torch.dtype) -> Any:
        return matrices if isinstance(matrices, Tensor) and matrices.dtype == dtype else cls(matrices, dtype)

    def __getitem__(self, expert: int, /) -> Tensor:
        held = self.held
        if isinstance(held, Tensor):
            return held[expert].to(self.dtype)
        if isinstance(held, Int8Matrices):
            laid = _laid(held.weight[expert], factor=held.scale[expert])
            return _written(laid, INT8, held.weight.shape[1], held.weight.shape[2], self.dtype)
        zero = None if held.zero is None else held.zero[expert]
        laid = _laid(held.packed[expert], held.scale[expert], zero, held.factor[expert], held.group)
        return _written(laid, INT4, held.packed.shape[1], held.columns, self.dtype)


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


def _stored(matrices: Any) -> Tensor:
    """The numbers of stacked matrices, `[E, O, …]`."""
    if isinstance(matrices, Int4Matrices):
        return matrices.packed
    return matrices if isinstance(matrices, Tensor) else matrices.weight


def _matrices(matrices: Any) -> tuple[tuple[Any, ...], Any] | None:
    """Stacked matrices as the loops take them, and the type of their numbers; None for what they do not know."""
    if isinstance(matrices, Tensor):
        return (_laid(matrices), LIKE[matrices.dtype]) if plain(matrices) else None
    if isinstance(matrices, Int8Matrices):
        known = here(matrices.weight, matrices.scale)
        return (_laid(matrices.weight, factor=matrices.scale), INT8) if known else None
    if isinstance(matrices, Int4Matrices):
        parts = matrices.packed, matrices.scale, matrices.zero, matrices.factor, matrices.group
        return (_laid(*parts), INT4) if _known_int4(*parts) else None
    return None
