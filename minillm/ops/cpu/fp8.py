"""Products with matrices of e4m3 and factors of rows on a CPU: rows are written out by `loops/fp8.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops import reference
from minillm.ops.cpu import loops
from minillm.ops.cpu.arrays import LIKE, address
from minillm.ops.cpu.matrices import few, here, plain
from minillm.weights import fp8

VECTOR = 16  # columns: groups of which end where one does


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, width: int = fp8.BLOCK) -> Tensor:
    """`reference.fp8_linear`."""
    groups = -(-x.shape[-1] // width) if width else 1
    fits = weight.is_contiguous() and here(weight) and scale.dtype == torch.float32 and plain(scale)
    if not (
        fits
        and scale.shape == (len(weight), groups)
        and plain(x, bias)
        and x.numel()
        and len(weight)
        and width % VECTOR == 0
    ):
        return reference.fp8_linear(x, weight, scale, bias, width)
    at, sizes = (address(weight), address(scale)), (*weight.shape, width)
    if not few(x):
        written = torch.empty(weight.shape, dtype=x.dtype, device="cpu")
        loops.fp8.dequantise(at, address(written), sizes, LIKE[x.dtype])
        return F.linear(x, written, bias)
    y = x.new_empty(*x.shape[:-1], len(weight))
    rows = x.numel() // x.shape[-1]
    loops.fp8.linear(address(x), at, address(bias), address(y), rows, sizes, LIKE[x.dtype])
    return y
