"""Matrices of few bits in tiles, drawn at random, and how far a product with them may be from the formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from minillm.ops.cpu import tiles
from minillm.ops.cpu.loops.tiles import whole
from minillm.weights.grouped import Fields, Grouped, count
from minillm.weights.ints import Int4, Int8

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NF4 = (-1, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0, 0.07958, 0.16093, 0.24611, 0.33792, 0.44071,
       0.56262, 0.72296, 1)  # fmt: skip
FP4 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FEW_FORMS = [
    replace(form, tile=tiles.TILE)
    for form in (
        Int8().form, Int4(16).form, Int4(32, symmetric=False).form, Grouped(4, 32, torch.float32, minimum=True),
        Grouped(4, 32, torch.float32, table=NF4), Grouped(4, 32, torch.float32, table=IQ4), Grouped(4, 32, zero=8),
        Grouped(4, 32, torch.float32, zero=None),
    )
]  # fmt: skip
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}


@dataclass(frozen=True)
class Made:
    """A matrix `[O, I]`: its form, its parts, and what it stands for in fp64."""

    form: Grouped
    parts: Mapping[str, Tensor]
    outputs: int
    weight: Tensor

    def times(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return tiles.grouped_linear(x, self.parts, self.form, self.outputs, bias)


FORMS = st.builds(
    lambda bits, group, scale, factor, times, rest, rounded: Grouped(
        4 if isinstance(rest, tuple) else bits,
        group,
        scale,
        factor if scale == torch.int8 else None,
        group * times if scale == torch.int8 else 0,
        None if rest == "zeros" else 2 ** (bits - 1) if rest == "zero" else 0,
        rest == "minima",
        rest if isinstance(rest, tuple) else None,
        rounded,
        tile=tiles.TILE,
    ),
    st.sampled_from((4, 5, 6, 8)),
    st.sampled_from((0, 16, 32, 64, 96, 128)),
    st.sampled_from((*DTYPES, torch.int8)),
    st.sampled_from(DTYPES),
    st.sampled_from((0, 1, 2, 16)),
    st.sampled_from(("zero", "zeros", "minima", NF4, FP4, IQ4)),
    st.sampled_from((None, None, torch.float16, torch.bfloat16)),
)


def matrix(form: Grouped, outputs: int, inputs: int, seed: int) -> Made:
    made = torch.Generator().manual_seed(seed)
    groups, spans = count(inputs, form.group), count(inputs, form.span)

    def whole_numbers(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=made)

    def scales() -> Tensor:
        if form.scale == torch.int8:
            return (whole_numbers(255, outputs, groups) - 127).to(torch.int8)
        return torch.randn(outputs, groups, generator=made).to(form.scale)

    def factors() -> Tensor | None:
        return torch.rand(outputs, spans, generator=made).to(form.factor) / 64 if form.factor else None

    q = whole_numbers(2**form.bits, outputs, inputs).to(torch.uint8)
    zeros = whole_numbers(2**form.bits, outputs, groups).to(torch.uint8) if form.zero is None else None
    least, floor = (scales(), factors()) if form.minimum else (None, None)
    fields = Fields(q, scales(), factors(), zeros, least, floor)
    return Made(form, form.pack(fields), outputs, form.values(fields).double())


@st.composite
def problems(draw: Any, least: int = 1, most: int = 17) -> tuple[Made, Tensor, Tensor | None]:
    """A matrix, rows of x, and a bias or none."""
    form, seed, dtype = draw(FORMS), draw(st.integers(0, 999)), draw(st.sampled_from(DTYPES))
    rows, outputs, inputs = draw(st.integers(least, most)), draw(st.integers(1, 40)), draw(st.integers(1, 400))
    random = torch.Generator().manual_seed(seed)
    bias = draw(st.sampled_from((None, torch.randn(outputs, generator=random))))
    x = torch.randn(rows, inputs, generator=random)
    return matrix(form, outputs, inputs, seed), x.to(dtype), None if bias is None else bias.to(dtype)


def allowed(made: Made, x: Tensor, exact: Tensor) -> Tensor:
    """What a result may be wrong by.

    The sums and the result's rounding; in 16 bits that of x to 16 bits, or to 15 among many rows: 2^-14.98 or 2^-13.98
    of the largest of a chunk of 32, and that of a table to 16 bits, 2^-15.98 of its largest. Where W is written out for
    many rows, that of W to x's type, which is also what a rounded form is spared.
    """
    sums = x.double().abs() @ made.weight.abs().t()
    if x.dtype == torch.float32:
        return sums * 2.0**-21 + exact.abs() * 2.0**-24 + SMALLEST[x.dtype]
    eps = torch.finfo(x.dtype).eps
    error = exact.abs() * eps / 2 + sums * 2.0**-20 + SMALLEST[x.dtype] * (1 + x.double().abs().sum(-1, keepdim=True))
    many = len(x) > 16
    if (many and not tiles.in_shorts(x, made.form)) or not whole.VNNI or made.form.rounded:
        error = error + sums * max(eps, torch.finfo(made.form.rounded or x.dtype).eps)
    most = torch.stack([part.amax(-1) for part in x.double().abs().split(32, -1)], -1)
    error = error + most.repeat_interleave(32, -1)[:, : x.shape[1]] @ made.weight.abs().t() * 2.0 ** (many - 14.98)
    of_table = x.double().abs().sum(-1, keepdim=True) * made.weight.abs().amax(-1) * 2.0**-15.98
    return error if made.form.table is None else error + of_table
