"""Matrices of e4m3 through the CPU's compiled loops: against the formula in fp64, written out to the bit, and what they
leave to PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.ops import reference
from minillm.ops.cpu import fp8, loops, tiles
from minillm.ops.cpu.arrays import LIKE, address
from minillm.ops.stacked import HeldMatrices
from minillm.weights.fp8 import Fp8
from tests.helpers.tiled import DTYPES


def matrix(outputs: int, inputs: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of all 254 kinds, and factors."""
    random = torch.Generator().manual_seed(seed)
    raw = torch.randint(256, (outputs, inputs), generator=random).to(torch.uint8)
    raw[(raw & 127) == 127] = 0
    scale = torch.randn(outputs, -(-inputs // width) if width else 1, generator=random) / 64
    return raw.view(torch.float8_e4m3fn), scale


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20), st.integers(1, 400), st.sampled_from((0, 16, 48, 128)), st.sampled_from(DTYPES),
    st.integers(1, 17), st.booleans(), st.integers(0, 99),
)  # fmt: skip
@torch.no_grad()
def test_products_are_the_formula(
    outputs: int, inputs: int, width: int, dtype: torch.dtype, rows: int, biased: bool, seed: int
) -> None:
    weight, scale = matrix(outputs, inputs, width, seed)
    x, bias = torch.randn(rows, inputs).to(dtype), torch.randn(outputs).to(dtype) if biased else None
    w = Fp8(width).dequantise({"": weight, "_scale": scale}, inputs, torch.float32)
    written = torch.empty(outputs, inputs, dtype=dtype)
    at = address(weight), address(scale)
    loops.fp8.dequantise(at, address(written), (outputs, inputs, width), LIKE[dtype])
    assert torch.equal(written, w.to(dtype))
    found = fp8.fp8_linear(x, weight, scale, bias, width)
    exact = x.double() @ w.double().t() + (0 if bias is None else bias.double())
    # The sums, and the result's rounding; in 16 bits of many rows that of W.
    sums, eps = x.double().abs() @ w.double().abs().t(), torch.finfo(dtype).eps
    rounding = 0.0 if dtype == torch.float32 else eps
    allowed = sums * (2.0**-21 + (rounding if rows > 16 else 0)) + exact.abs() * eps / 2 + 2.0**-24
    assert ((found.double() - exact).abs() <= allowed).all()
    for row in range(rows if rows <= 16 else 0):
        assert torch.equal(fp8.fp8_linear(x[row : row + 1], weight, scale, bias, width)[0], found[row])


@torch.no_grad()
@pytest.mark.parametrize("bits", [127, 255])
@pytest.mark.parametrize("rows", [1, 20])
def test_what_is_no_number_stays_none(bits: int, rows: int) -> None:
    raw = torch.zeros(2, 40, dtype=torch.uint8)
    raw[1, 37] = bits
    found = fp8.fp8_linear(torch.ones(rows, 40), raw.view(torch.float8_e4m3fn), torch.ones(2, 1))
    assert (found[:, 0] == 0).all()
    assert found[:, 1].isnan().all()


@torch.no_grad()
def test_a_row_ends_before_the_next_one() -> None:
    """The last group begins within the last step, and what lies behind it in x is no number."""
    weight, scale = matrix(3, 32, 16, 5)
    x = torch.randn(2, 32)
    alone = fp8.fp8_linear(x[:1], weight, scale, None, 16)
    x[1] = float("nan")
    found = fp8.fp8_linear(x, weight, scale, None, 16)
    assert torch.equal(found[:1], alone)
    assert found[1].isnan().all()


def test_the_rest_is_left_to_pytorch() -> None:
    weight, scale = matrix(4, 40, 20, 0)
    x = torch.randn(2, 40, requires_grad=True)
    expected = reference.fp8_linear(x, weight, scale, None, 20)
    assert torch.equal(fp8.fp8_linear(x.detach(), weight, scale, None, 20), expected)
    fp8.fp8_linear(x, weight, scale[:, :1], None, 0).sum().backward()
    assert x.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_are_those_of_the_written_out_matrices(count: int, dtype: torch.dtype) -> None:
    made = torch.Generator().manual_seed(count)
    pairs = [
        [matrix(outputs, inputs, 16, 7 * e + outputs) for e in range(5)] for outputs, inputs in ((48, 80), (80, 24))
    ]
    parts = [{"": torch.stack([w for w, _ in each]), "_scale": torch.stack([s for _, s in each])} for each in pairs]
    held = [HeldMatrices(each, Fp8(16), each[""].shape[-1], dtype) for each in parts]
    x, biases = torch.randn(count, 80, generator=made).to(dtype), [torch.randn(5, n).to(dtype) for n in (48, 80)]
    weights, chosen = torch.rand(count, 5, generator=made).topk(2)
    assert fp8.are_fp8(x, *held)
    found = tiles.experts(x, chosen, weights, *held, "silu", tuple(biases)).float()
    wide = [Fp8(16).dequantise(each, each[""].shape[-1], torch.float32) for each in parts]
    given = x.float(), chosen, weights, *wide, "silu", tuple(each.float() for each in biases)
    exact = reference.experts(*given)
    largest = exact.abs().max()
    assert (found - exact).abs().max() <= largest * (1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)


def test_experts_that_are_not_all_fp8_are_left_to_others() -> None:
    weight, scale = matrix(4, 40, 0, 0)
    held = HeldMatrices({"": weight[None], "_scale": scale[None]}, Fp8(0), 40, torch.float32)
    assert fp8.are_fp8(torch.ones(1, 40), held, held)
    assert not fp8.are_fp8(torch.ones(1, 40), held, torch.ones(1, 4, 40))
    assert not fp8.are_fp8(torch.ones(1, 40, dtype=torch.float64), held, held)
