"""Products with matrices of few bits in tiles (`weights/grouped.py`) on a CPU, through the loops of `loops/tiles/`: as
they lie for few rows; for many written out, which a loop does by the way where the processor multiplies numbers of 16
bits, but no bf16."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minillm.ops import grouped, reference
from minillm.ops.cpu import fp8, loops, matrices
from minillm.ops.cpu.arrays import LIKE, address
from minillm.ops.cpu.matrices import FEW_ROWS, few, here, plain
from minillm.ops.stacked import GroupedMatrices
from minillm.spec import Gating, Ungated
from minillm.weights.grouped import Grouped

TILE = 16  # rows, which are the places of a vector
PARTS = ("", "_high", "_scale", "_factor", "_zero", "_least", "_floor")  # in the order in which loops take them
ROWS = 512  # of x that stay near meanwhile, of many
BYTES = {4: (256, 0), 5: (256, 64), 6: (256, 128), 8: (512, 0)}  # of 32 columns of a tile, in both planes


def grouped_linear(
    x: Tensor, parts: Mapping[str, Tensor], made: Grouped, outputs: int, bias: Tensor | None = None
) -> Tensor:
    """`reference.grouped_linear`."""
    form = laid(made)
    if not (form and plain(x, bias) and whole(parts) and x.numel() and outputs):
        return reference.grouped_linear(x, parts, made, outputs, bias)
    at, inputs = located(parts, made), x.shape[-1]
    multiply, rows = loops.tiles.rows.linear, FEW_ROWS
    if not few(x):
        if not in_shorts(x, made):
            return matrices.in_pieces(x, outputs, partial(_rows, parts, made, inputs), bias)
        multiply, form, rows = loops.tiles.many.linear, laid_in_bytes(made), ROWS
    elif in_bytes(x):
        multiply, form = loops.tiles.products.linear, laid_in_bytes(made)
    y, pieces = x.new_empty(*x.shape[:-1], outputs), -(-x.numel() // (inputs * rows))
    for some, into in zip(x.view(-1, inputs).chunk(pieces), y.view(-1, outputs).chunk(pieces), strict=True):
        multiply(address(some), at, address(bias), address(into), (len(some), inputs, outputs), form, LIKE[x.dtype])
    return y


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
    """`reference.experts`: for few tokens in one loop, for many with a product for each one; those of e4m3 in
    `fp8.py`."""
    given, numbers = (gate_up, down), matrices.activation_number(activation)
    if fp8.are_fp8(x, *given):
        return fp8.experts(x, chosen, weights, gate_up, down, activation, biases, places)
    if not any(isinstance(each, GroupedMatrices) for each in given):
        return matrices.experts(x, chosen, weights, gate_up, down, activation, biases, places)
    known = all(isinstance(each, GroupedMatrices) and laid(each.made) and whole(each.parts) for each in given)
    fits = few(x) and plain(x, *(biases or ())) and plain(weights) and chosen.is_contiguous() and here(chosen)
    if not (known and fits and numbers and (in_bytes(x) or all(_whole_numbers(each.made) for each in given))):
        if not all(whole(each.parts) for each in given if isinstance(each, GroupedMatrices)):
            return grouped.experts(x, chosen, weights, gate_up, down, activation, biases, places)
        gate_up, down = (_Lying(each) if isinstance(each, GroupedMatrices) else each for each in given)
        return grouped.experts(x, chosen, weights, gate_up, down, activation, biases, places)
    y, sizes = torch.empty_like(x), (len(x), chosen.shape[1], x.shape[1], gate_up.outputs // 2)
    at, form = [address(each) for each in (x, chosen, weights, y)], laid_in_bytes if in_bytes(x) else laid
    into, out_of = ((located(each.parts, each.made), form(each.made)) for each in (gate_up, down))
    bias_at = tuple(number for each in biases or (None, None) for number in matrices.located(each))
    loops.tiles.experts.experts(*at, into, out_of, bias_at, sizes, numbers, in_bytes(x), LIKE[x.dtype])
    return y


def _whole_numbers(made: Grouped) -> bool:
    """Whether a form has no table and no minima and is not rounded: what `loops/tiles/floats.py` takes."""
    return made.table is None and not made.minimum and made.rounded is None


@dataclass(frozen=True)
class _Lying:
    """Matrices `[E, O, I]` that are multiplied as they lie."""

    held: GroupedMatrices

    def product(self, expert: int, x: Tensor, bias: Tensor | None) -> Tensor:
        parts = {name: part[expert] for name, part in self.held.parts.items()}
        return grouped_linear(x, parts, self.held.made, self.held.outputs, bias)


def _rows(parts: Mapping[str, Tensor], made: Grouped, inputs: int, some: slice, dtype: torch.dtype) -> Tensor:
    """Some rows of a matrix, from the first of a tile on, written out."""
    of_tiles = slice(some.start // TILE, -(-some.stop // TILE))
    at, form = located({name: part[of_tiles] for name, part in parts.items()}, made), laid(made)
    assert form is not None  # of what comes here
    return written(at, form, some.stop - some.start, inputs, dtype)


def written(at: tuple[int, ...], form: tuple[int, ...], outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """The matrix `[O, I]` as numbers."""
    weight = torch.empty(outputs, inputs, dtype=dtype, device="cpu")
    loops.tiles.rows.dequantise(at, address(weight), (outputs, inputs), form, LIKE[dtype])
    return weight


def whole(parts: Mapping[str, Tensor]) -> bool:
    """Whether parts lie as the loops read them."""
    return all(part.is_contiguous() and here(part) for part in parts.values())


def in_bytes(x: Tensor) -> bool:
    """Whether x goes through bytes: where the processor multiplies them, and 16 bits can say what x is."""
    return loops.tiles.whole.VNNI and x.dtype != torch.float32


def in_shorts(x: Tensor, made: Grouped) -> bool:
    """Whether many rows of x go through numbers of 16 bits: where those of W fit into them, and the processor does not
    multiply bf16, which is as fast."""
    return in_bytes(x) and not loops.dots.NATIVE_BF16 and (made.table is None or _table(made.table)[1] == 1)


def located(parts: Mapping[str, Tensor], made: Grouped) -> tuple[int, ...]:
    """Where parts begin, and the table."""
    table = None if made.table is None else _table(made.table)[0]
    return (*(address(parts.get(name)) for name in PARTS), address(table))


@functools.cache
def _table(values: tuple[float, ...]) -> tuple[Tensor, int]:
    """A table as fp32, and in whole numbers with a zero of 128 or 128 * 256: their low bytes, their high bytes, and the
    fp32 that they are in units of; and how many bytes they need. 16 bits are used up to 127 * 256, as of x."""
    table = torch.tensor(values, dtype=torch.float64)
    fits = (n for n in (1, 2, 4, 8) if bool((table * n == (table * n).round()).all() & ((table * n).abs() < 128).all()))
    most = float(table.abs().max())
    times, width = next(((n, 1) for n in fits), (32512 / most if most else 1, 2))
    whole = (table * times).round().to(torch.int32) + (128 if width == 1 else 128 * 256)
    parts = table.float(), (whole & 255).to(torch.uint8), (whole >> 8).to(torch.uint8), torch.tensor([1 / times])
    return torch.cat([part.view(torch.uint8) for part in parts]), width


@functools.cache
def laid_in_bytes(made: Grouped) -> tuple[int, ...] | None:
    """`laid` for x in bytes: a table's width in place of bits, and its zero."""
    form = laid(made)
    if form is None or made.table is None:
        return form
    return (_table(made.table)[1], *form[1:3], 128, *form[4:])


@functools.cache
def laid(made: Grouped) -> tuple[int, ...] | None:
    """A form as the loops take it; None for one that they do not."""
    kinds = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.int8: 3}
    known = made.tile == TILE and made.scale in kinds and {made.factor, made.rounded} <= {None, *kinds}
    fits = made.group in (0, TILE) or made.group % 32 == 0
    spans = made.span % made.group == 0 if made.span and made.group else made.span == 0
    if not (known and fits and spans) or (made.minimum and made.zero is None):
        return None
    types = kinds[made.scale], -1 if made.factor is None else kinds[made.factor]
    rounded = -1 if made.rounded is None else kinds[made.rounded]
    return (made.bits, made.group, made.span, made.zero or 0, *types, *BYTES[made.bits], rounded)
