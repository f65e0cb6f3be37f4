"""Products with matrices of few bits in tiles (`weights/grouped.py`) on a CPU: as they lie for few rows, written out
for many, through the loops of `loops/tiles.py` and `loops/tile_rows.py`."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops import reference
from minillm.ops.cpu import loops
from minillm.ops.cpu.arrays import LIKE, address
from minillm.ops.cpu.matrices import few, here, plain
from minillm.weights.grouped import Grouped

TILE = 16  # rows, which are the places of a vector
PARTS = ("", "_high", "_scale", "_factor", "_zero", "_least", "_floor")  # in the order in which loops take them
BYTES = {4: (256, 0), 5: (256, 64), 6: (256, 128), 8: (512, 0)}  # of 32 columns of a tile, in both planes


def grouped_linear(
    x: Tensor, parts: Mapping[str, Tensor], made: Grouped, outputs: int, bias: Tensor | None = None
) -> Tensor:
    """`reference.grouped_linear`."""
    form = laid(made)
    if not (form and plain(x, bias) and whole(parts) and x.numel() and outputs):
        return reference.grouped_linear(x, parts, made, outputs, bias)
    at, inputs = located(parts, made), x.shape[-1]
    if not few(x):
        return F.linear(x, written(at, form, outputs, inputs, x.dtype), bias)
    y = x.new_empty(*x.shape[:-1], outputs)
    multiply = loops.tiles.linear if in_bytes(x, made) else loops.tile_rows.linear
    multiply(address(x), at, address(bias), address(y), (x.numel() // inputs, inputs, outputs), form, LIKE[x.dtype])
    return y


def written(at: tuple[int, ...], form: tuple[int, ...], outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """The matrix `[O, I]` as numbers."""
    weight = torch.empty(outputs, inputs, dtype=dtype, device="cpu")
    loops.tile_rows.dequantise(at, address(weight), (outputs, inputs), form, LIKE[dtype])
    return weight


def whole(parts: Mapping[str, Tensor]) -> bool:
    """Whether parts lie as the loops read them."""
    return all(part.is_contiguous() and here(part) for part in parts.values())


def in_bytes(x: Tensor, made: Grouped) -> bool:
    """Whether x goes through bytes: where the processor multiplies them, and 16 bits can say what x is."""
    return loops.whole.VNNI and x.dtype != torch.float32 and made.table is None


def located(parts: Mapping[str, Tensor], made: Grouped) -> tuple[int, ...]:
    """Where parts begin, and the table."""
    table = None if made.table is None else _table(made.table)
    return (*(address(parts.get(name)) for name in PARTS), address(table))


@functools.cache
def _table(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


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
