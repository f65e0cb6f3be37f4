"""Numbers in groups: what is packed comes back, byte by byte by the layout, and is the formula's number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.weights.grouped import INPUTS, Fields, Grouped, count

TABLE = tuple(float(each * each - 40) for each in range(16))


@st.composite
def forms(draw: st.DrawFn) -> tuple[Grouped, int, int, int]:
    """A form, rows, inputs and a seed."""
    bits, group = draw(st.sampled_from(sorted(INPUTS))), draw(st.sampled_from((0, 1, 2, 5, 16, 32, 48)))
    options: dict[str, Any] = {"scale": draw(st.sampled_from((torch.float16, torch.bfloat16, torch.float32)))}
    if draw(st.booleans()):
        span = draw(st.sampled_from((0, 1, 3, 8))) * group
        options = {"scale": torch.int8, "factor": draw(st.sampled_from((torch.float16, torch.float32))), "span": span}
    kind = draw(st.sampled_from(("zero", "zeros", "minimum", "minimum and zero", "table")))
    options["zero"] = {"zero": draw(st.integers(0, 2**bits - 1)), "zeros": None}.get(kind, 0)
    options["minimum"] = kind.startswith("minimum")
    options["zero"] = 3 if kind == "minimum and zero" else options["zero"]
    options["table"] = TABLE if kind == "table" and bits == 4 else None
    options["rounded"] = draw(st.sampled_from((None, torch.bfloat16)))
    made = Grouped(bits, group, tile=draw(st.sampled_from((1, 2, 16))), **options)
    return made, draw(st.integers(1, 40)), draw(st.integers(1, 130)), draw(st.integers(0, 2**32))


def drawn(form: Grouped, rows: int, inputs: int, seed: int) -> Fields:
    """Fields of rows: all numbers that there are, factors that products of are exact in fp32."""
    made = torch.Generator().manual_seed(seed)
    groups, spans = (rows, count(inputs, form.group)), (rows, count(inputs, form.span))

    def whole(low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high, shape, generator=made).to(dtype)

    scales = (whole(-99, 99, groups, form.scale) for _ in range(2))
    factors = (whole(1, 60, spans, form.factor) / 8 if form.factor else None for _ in range(2))
    return Fields(
        q=whole(0, 2**form.bits, (rows, inputs), torch.uint8),
        scale=next(scales),
        factor=next(factors),
        zero=whole(0, 2**form.bits, groups, torch.uint8) if form.zero is None else None,
        least=next(scales) if form.minimum else None,
        floor=next(factors) if form.minimum else None,
    )


def formula(form: Grouped, fields: Fields, o: int, i: int) -> float:
    """One number of the matrix in Python's arithmetic, which is exact for these."""
    g = i // form.group if form.group else 0
    s = g // (form.span // form.group) if form.span else 0
    q = int(fields.q[o, i])
    value = form.table[q] if form.table else q - (int(fields.zero[o, g]) if fields.zero is not None else form.zero)
    value = value * float(fields.scale[o, g]) * (float(fields.factor[o, s]) if form.factor else 1.0)
    if fields.least is not None:
        value -= float(fields.least[o, g]) * (float(fields.floor[o, s]) if form.factor else 1.0)
    return value


@settings(max_examples=150, deadline=None)
@given(forms())
def test_what_is_packed_comes_back(drawn_form: tuple[Grouped, int, int, int]) -> None:
    """Parts have the shapes and types that were said; rows beyond the last are those that fill the tile."""
    form, rows, inputs, seed = drawn_form
    fields = drawn(form, rows, inputs, seed)
    parts = form.pack(fields)
    stated = form.parts((rows, inputs))
    assert {name: (tuple(part.shape), part.dtype) for name, part in parts.items()} == stated
    back = form.fields(parts, inputs).map(lambda each: each[:rows])
    for name in ("q", "scale", "factor", "zero", "least", "floor"):
        before, after = getattr(fields, name), getattr(back, name)
        assert (before is None) == (after is None), name
        assert before is None or torch.equal(before, after), name


@settings(max_examples=60, deadline=None)
@given(forms())
def test_numbers_are_the_formula(drawn_form: tuple[Grouped, int, int, int]) -> None:
    form, rows, inputs, seed = drawn_form
    fields = drawn(form, rows, inputs, seed)
    expected = torch.tensor([[formula(form, fields, o, i) for i in range(inputs)] for o in range(rows)])
    expected = expected if form.rounded is None else expected.to(form.rounded).float()
    assert torch.equal(form.values(fields), expected)


@settings(max_examples=60, deadline=None)
@given(forms(), st.integers(1, 3))
def test_matrices_and_rows(drawn_form: tuple[Grouped, int, int, int], experts: int) -> None:
    """All of a stack, some rows of each matrix, and a few at a time are what the fields give."""
    form, rows, inputs, seed = drawn_form
    given_fields = [drawn(form, rows, inputs, seed + e) for e in range(experts)]
    packed = [form.pack(each) for each in given_fields]
    parts = {name: torch.stack([each[name] for each in packed]) for name in packed[0]}
    expected = torch.stack([form.values(each) for each in given_fields])
    assert torch.equal(form.dequantise(parts, inputs, torch.float32, rows), expected)
    chosen = torch.randint(rows, (2, 3), generator=torch.Generator().manual_seed(seed))
    for e, each in enumerate(packed):
        assert torch.equal(form.lookup(each, chosen, inputs, torch.float32), expected[e][chosen])
        assert torch.equal(form.lookup(each, chosen, inputs, torch.bfloat16), expected[e][chosen].bfloat16())


@pytest.mark.parametrize("bits", sorted(INPUTS))
def test_the_layout_of_the_planes(bits: int) -> None:
    """Byte by byte as the module says: kernels read it so."""
    form = Grouped(bits, 32, tile=2)
    q = torch.randint(2**bits, (4, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    parts = form.pack(Fields(q, torch.ones(4, 3, dtype=torch.float16)))
    for o in range(4):
        for i in range(96):
            tile, row, number = o // 2, o % 2, int(q[o, i])
            if bits == 8:
                assert int(parts[""][tile, i // 4, row, i % 4]) == number
                continue
            assert int(parts[""][tile, i // 8, row, i % 4]) >> 4 * (i % 8 // 4) & 15 == number & 15
            if bits == 6:
                assert int(parts["_high"][tile, i // 16, row, i % 4]) >> 2 * (i % 16 // 4) & 3 == number >> 4
            if bits == 5:
                assert int(parts["_high"][tile, i // 32, row, i % 4]) >> (i % 32 // 4) & 1 == number >> 4
