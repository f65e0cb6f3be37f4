"""Matrices of few bits in tiles through the CPU's compiled loops: against the formula in fp64, row by row as packed, a
row alone against a row among others, and what they leave to PyTorch."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.ops import reference
from minillm.ops.cpu import tiles
from minillm.ops.cpu.loops.tiles import whole
from minillm.weights.grouped import Fields, Grouped
from tests.helpers.tiled import DTYPES, FEW_FORMS, FORMS, Made, allowed, matrix, problems


@settings(max_examples=80, deadline=None)
@given(problems())
@torch.no_grad()
def test_products_are_the_formula(given: tuple[Made, Tensor, Tensor | None]) -> None:
    made, x, bias = given
    exact = x.double() @ made.weight.t() + (0 if bias is None else bias.double())
    assert ((made.times(x, bias).double() - exact).abs() <= allowed(made, x, exact)).all()


@settings(max_examples=80, deadline=None)
@given(problems(17, 60))
@torch.no_grad()
def test_prompts_are_the_formula(given: tuple[Made, Tensor, Tensor | None]) -> None:
    """In pieces of uneven sizes, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "ROWS", 23)
        test_products_are_the_formula.hypothesis.inner_test(given)


@torch.no_grad()
@pytest.mark.parametrize("span", [0, 16, 48, 64])
def test_factors_of_a_prompt_may_change_within_a_chunk(span: int) -> None:
    made = matrix(Grouped(4, 16, torch.int8, torch.float16, span, zero=8, tile=tiles.TILE), 20, 300, 0)
    x = torch.randn(20, 300).bfloat16()
    exact = x.double() @ made.weight.t()
    assert ((made.times(x).double() - exact).abs() <= allowed(made, x, exact)).all()


@torch.no_grad()
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_sum_of_a_prompt_is_too_large(bits: int, sign: int) -> None:
    """All numbers and all codes of scales as large as they can be, and all of x too."""
    form = Grouped(bits, 32, torch.int8, torch.float16, 256, zero=2 ** (bits - 1), tile=tiles.TILE)
    q, scale = torch.zeros(16, 256, dtype=torch.uint8), torch.full((16, 8), -128, dtype=torch.int8)
    fields = Fields(q, scale, torch.ones(16, 1).half() / 2**12)
    made = Made(form, form.pack(fields), 16, form.values(fields).double())
    x = torch.full((20, 256), sign * 126.5).bfloat16()  # n is 32384
    assert torch.equal(made.times(x), (x.double() @ made.weight.t()).bfloat16())


@settings(max_examples=40, deadline=None)
@given(problems())
@torch.no_grad()
def test_a_batch_gives_each_row_what_it_gives_alone(given: tuple[Made, Tensor, Tensor | None]) -> None:
    made, x, bias = given
    together = made.times(x[:16], bias)
    for row in range(len(together)):
        assert torch.equal(made.times(x[row : row + 1], bias)[0], together[row])


@settings(max_examples=80, deadline=None)
@given(FORMS, st.integers(1, 40), st.integers(1, 400), st.sampled_from(DTYPES), st.integers(0, 999))
@torch.no_grad()
def test_matrices_are_written_out_to_the_bit(
    form: Grouped, outputs: int, inputs: int, dtype: torch.dtype, seed: int
) -> None:
    made = matrix(form, outputs, inputs, seed)
    laid = tiles.laid(form)
    assert laid is not None
    found = tiles.written(tiles.located(made.parts, form), laid, outputs, inputs, dtype)
    assert torch.equal(found, form.dequantise(made.parts, inputs, dtype, outputs))


@pytest.fixture
def without_bytes() -> Iterator[None]:
    """A processor that does not multiply bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole, "VNNI", False)
        yield


@pytest.mark.usefixtures("without_bytes")
def test_other_processors() -> None:
    test_products_are_the_formula()
    test_prompts_are_the_formula()
    test_a_batch_gives_each_row_what_it_gives_alone()


@torch.no_grad()
@pytest.mark.skipif(not whole.VNNI, reason="for processors that multiply bytes")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", FEW_FORMS)
def test_what_is_no_number_stays_none(value: float, form: Grouped) -> None:
    made = matrix(form, 20, 100, 0)
    x = torch.randn(2, 100).bfloat16()
    x[1, 70] = value
    found = made.times(x)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()


@torch.no_grad()
@pytest.mark.parametrize("form", FEW_FORMS)
def test_zeros_give_zeros(form: Grouped) -> None:
    made = matrix(form, 20, 100, 0)
    for rows in (1, 5, 40):
        assert torch.equal(made.times(torch.zeros(rows, 100).bfloat16()), torch.zeros(rows, 20))


@given(st.integers(0, 2**62), st.sampled_from((128, 191, 254, 255)), st.sampled_from((-1, 1)), st.integers(-60, 60))
def test_what_bfloat16_has_stays_exact(seed: int, mantissa: int, sign: int, exponent: int) -> None:
    """Down to 1/127 of the largest: 256 h + l times the power is x, bit for bit."""
    x = (torch.randn(whole.CHUNK, generator=torch.Generator().manual_seed(seed)) * 20).clamp(-120, 120).bfloat16()
    x[seed % whole.CHUNK] = sign * mantissa
    x = x * 2.0**exponent
    x[x.abs() < x.abs().max() / 127] = 0
    parts, powers, _ = whole.split(x.view(torch.uint16).numpy(), 1)
    high, low = (each.astype("float64") for each in (parts[: whole.CHUNK], parts[whole.CHUNK : 2 * whole.CHUNK]))
    assert ((256 * high + low) * powers[0] == x.double().numpy()).all()


@torch.no_grad()
@pytest.mark.parametrize("form", FEW_FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_x_of_any_size(dtype: torch.dtype, form: Grouped) -> None:
    """Each chunk of x has a magnitude of its own, and one number far above the others."""
    made = matrix(form, 20, 320, 0)
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        x = (
            torch.randn(3, 320, generator=random)
            * 2.0 ** torch.randint(-15, 3, (10,), generator=random)[torch.arange(320) // 32]
        )
        x[:, seed % 32 :: 32] *= 60
        x = (x * 32 / made.weight.abs().max()).to(dtype)  # fp16 has room for what comes of it
        exact = x.double() @ made.weight.t()
        assert ((made.times(x).double() - exact).abs() <= allowed(made, x, exact)).all()


def before_a_wall(tensor: Tensor) -> Tensor:
    """A copy that ends where a page begins that must not be read."""
    size = tensor.numel() * tensor.element_size()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    kept = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(kept))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + pages), mmap.PAGESIZE, 0) == 0
    copy = torch.frombuffer(kept, dtype=tensor.dtype, count=tensor.numel(), offset=pages - size).view(tensor.shape)
    return copy.copy_(tensor)


@settings(max_examples=40, deadline=None)
@given(problems())
@torch.no_grad()
def test_nothing_is_read_behind_a_matrix(given: tuple[Made, Tensor, Tensor | None]) -> None:
    """A process that did would end here."""
    made, x, bias = given
    walled = replace(made, parts={name: before_a_wall(part) for name, part in made.parts.items()})
    assert torch.equal(walled.times(x, bias), made.times(x, bias))


@pytest.mark.parametrize(
    "form",
    [
        Grouped(4, 32, zero=8, tile=1),
        Grouped(4, 8, zero=8, tile=tiles.TILE),
        Grouped(4, 48, zero=8, tile=tiles.TILE),
        Grouped(4, 32, zero=None, minimum=True, tile=tiles.TILE),
        Grouped(4, 32, torch.int8, torch.float32, 80, zero=8, tile=tiles.TILE),
    ],
)
def test_other_forms_are_left_to_pytorch(form: Grouped) -> None:
    assert tiles.laid(form) is None
    made, x = matrix(form, 20, 100, 0), torch.randn(2, 100)
    assert torch.equal(made.times(x), reference.grouped_linear(x, made.parts, made.form, 20))


def test_gradients_are_left_to_pytorch() -> None:
    made = matrix(Grouped(4, 32, zero=8, tile=tiles.TILE), 20, 100, 0)
    x = torch.randn(2, 100, requires_grad=True)
    made.times(x).sum().backward()
    assert x.grad is not None


def test_parts_that_do_not_lie_in_one_piece_are_left_to_pytorch() -> None:
    made = matrix(Grouped(4, 32, zero=8, tile=tiles.TILE), 20, 100, 0)
    apart = {name: torch.stack((part, part), dim=1)[:, 0] for name, part in made.parts.items()}
    x = torch.randn(2, 100)
    assert torch.equal(replace(made, parts=apart).times(x), reference.grouped_linear(x, apart, made.form, 20))
