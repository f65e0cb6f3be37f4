"""Experts whose matrices lie in tiles: a few tokens through the compiled loop, many with matrices written out, against
the formula in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.ops import reference
from minillm.ops.cpu import tiles
from minillm.ops.stacked import GroupedMatrices
from minillm.spec import CappedSwiGLU, ClampedSwiGLU
from minillm.weights.grouped import Grouped
from tests.helpers.tiled import DTYPES, FORMS, matrix

EXPERTS, PICKS = 4, 2
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", ClampedSwiGLU(1.702, 0.7), ClampedSwiGLU(1.0, 0.7, 0.0), CappedSwiGLU(0.7))


def stacked(form: Grouped, outputs: int, inputs: int, seed: int, dtype: torch.dtype) -> tuple[GroupedMatrices, Tensor]:
    """Matrices as they lie, of about one output for an input, and what they stand for in fp32 `[E, O, I]`."""
    made = [matrix(form, outputs, inputs, seed + expert) for expert in range(EXPERTS)]
    parts = {name: torch.stack([each.parts[name] for each in made]) for name in made[0].parts}
    for name in ("_factor", "_floor") if form.factor else ("_scale", "_least"):
        if name in parts:
            parts[name] /= 8 * inputs**0.5
    held = GroupedMatrices(parts, form, outputs, inputs, dtype)
    exact = GroupedMatrices(parts, form, outputs, inputs, torch.float32)
    return held, torch.stack([exact[expert] for expert in range(EXPERTS)])


@settings(max_examples=60, deadline=None)
@given(
    FORMS, FORMS, st.sampled_from(DTYPES), st.sampled_from((1, 2, 3, 16, 17, 40)), st.sampled_from(ACTIVATIONS),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
@torch.no_grad()
def test_experts_are_the_formula(
    into: Grouped, out_of: Grouped, dtype: torch.dtype, tokens: int, activation: Any, biased: bool, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    hidden, inner = 33 + seed, 7 + seed % 40
    (gate_up, exact_in), (down, exact_out) = (
        stacked(form, *shape, seed, dtype) for form, shape in ((into, (2 * inner, hidden)), (out_of, (hidden, inner)))
    )
    x = torch.randn(tokens, hidden, generator=random).to(dtype)
    chosen = torch.stack([torch.randperm(EXPERTS, generator=random)[:PICKS] for _ in range(tokens)])
    weights = torch.rand(tokens, PICKS, generator=random)
    sizes = (EXPERTS, 2 * inner), (EXPERTS, hidden)
    inner_bias, outer_bias = (torch.randn(*size, generator=random).to(dtype) for size in sizes)
    biases = (inner_bias, outer_bias) if biased else None
    exact_biases = (inner_bias.float(), outer_bias.float()) if biased else None
    found = tiles.experts(x, chosen, weights, gate_up, down, activation, biases).float()
    expected = reference.experts(x.float(), chosen, weights, exact_in, exact_out, activation, exact_biases)
    # As large as the largest result, in units of the type: matrices, what is between and results are each rounded.
    allowed = 8 * torch.finfo(dtype).eps * expected.abs().max() + 1e-6
    assert ((found - expected).abs() <= allowed).all()
    if dtype != torch.float32 and tokens <= 16:
        for n in range(tokens):
            one = (each[n : n + 1] for each in (x, chosen, weights))
            assert torch.equal(tiles.experts(*one, gate_up, down, activation, biases)[0].float(), found[n])


@torch.no_grad()
def test_experts_that_nobody_chose_are_not_read() -> None:
    form = Grouped(4, 32, torch.float32, zero=8, tile=tiles.TILE)
    (gate_up, _), (down, _) = stacked(form, 32, 64, 0, torch.bfloat16), stacked(form, 64, 16, 1, torch.bfloat16)
    for each in (gate_up, down):
        each.parts["_scale"][2] = float("nan")
    for tokens in (1, 40):
        chosen = torch.tensor([[0, 3]]).repeat(tokens, 1)
        x, weights = torch.randn(tokens, 64).bfloat16(), torch.ones(tokens, PICKS)
        assert tiles.experts(x, chosen, weights, gate_up, down, "silu").isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 40])
def test_one_of_the_two_may_be_plain(tokens: int) -> None:
    form = Grouped(4, 32, zero=8, tile=tiles.TILE)
    gate_up, exact = stacked(form, 32, 64, 0, torch.bfloat16)
    down, x = torch.randn(EXPERTS, 64, 16).bfloat16(), torch.randn(tokens, 64).bfloat16()
    chosen, weights = torch.tensor([[0, 3]]).repeat(tokens, 1), torch.ones(tokens, PICKS)
    found = tiles.experts(x, chosen, weights, gate_up, down, "silu").float()
    expected = reference.experts(x.float(), chosen, weights, exact, down.float(), "silu")
    assert ((found - expected).abs() <= 8 * torch.finfo(torch.bfloat16).eps * expected.abs().max()).all()
