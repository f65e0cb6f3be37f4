"""The paths through the experts against each other and the formula; what permuting, packing and sharing may change."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.model.moe import MoE
from minillm.ops import CPU, REFERENCE, Ops, grouped, reference
from minillm.spec import ClampedSwiGLU, GatedMLP
from minillm.spec import MoE as MoESpec
from minillm.spec import Router as RouterSpec
from tests.helpers.expert_problems import formula, matrices, routed

PATHS = {
    "loop": lambda x, c, w, g, d, act="silu", b=None: reference.experts(x, c, w, g, d, act, b),
    "grouped": lambda x, c, w, g, d, act="silu", b=None: grouped.experts(x, c, w, g, d, act, b),
}
# fp32 on values of size 1 to 5, sums of under 40 terms: the largest of 1400 draws was 2.6e-6. Larger values are rounded
# in proportion: 18.3 with an error of 5.9e-6 has been drawn.
EXACT, USUAL = 5e-6, 5.0


@settings(max_examples=60)
@given(st.data())
@torch.no_grad()
def test_loop_is_grouped_is_the_formula(data: st.DataObject) -> None:
    """Any number of tokens, experts and choices: on both sides of where the grouped path turns to its other form."""
    experts = data.draw(st.integers(1, 12), "experts")
    top_k = data.draw(st.integers(1, experts), "top k")
    tokens = data.draw(st.integers(1, 40) | st.just(experts // top_k) | st.just(experts // top_k + 1), "tokens")
    hidden, inner = data.draw(st.integers(1, 33), "hidden"), data.draw(st.integers(1, 20), "inner")
    x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(1))
    given_ = (x, *routed(tokens, experts, top_k, data.draw(st.integers(0, 9))), *matrices(experts, hidden, inner))
    expected = formula(*given_)
    for path in PATHS.values():
        assert (path(*given_) - expected).abs().max() <= EXACT * max(1, float(expected.abs().max()) / USUAL)


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 99), st.floats(0.3, 3.0), st.floats(0.2, 4.0))
@torch.no_grad()
def test_clamped_with_biases(experts: int, tokens: int, seed: int, alpha: float, limit: float) -> None:
    made = torch.Generator().manual_seed(seed)
    x, activation = torch.randn(tokens, 12, generator=made), ClampedSwiGLU(alpha, limit)
    biases = torch.randn(experts, 14, generator=made), torch.randn(experts, 12, generator=made)
    given_ = (x, *routed(tokens, experts, max(1, experts // 2), seed), *matrices(experts, 12, 7, seed))
    expected = formula(*given_, activation, biases)
    for path in PATHS.values():
        assert (path(*given_, activation, biases) - expected).abs().max() <= EXACT


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tokens", [1, 2, 50])
@torch.no_grad()
def test_bfloat16_errs_by_rounding_only(path: str, tokens: int) -> None:
    """Root mean square against fp64 on the same bf16 values: ten roundings (gate, its silu, up, their product, the
    expert's result, its weight, the sum, and those of parts in three products) of at most 2^-9 each make
    sqrt(10) 2^-9 = 6.2e-3; 5.4e-3 was the largest seen."""
    gate_up, down = (each.bfloat16() for each in matrices(16, 64, 32))
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    chosen, weights = routed(tokens, 16, 4)
    found, expected = PATHS[path](x, chosen, weights, gate_up, down), formula(x, chosen, weights, gate_up, down)
    assert found.dtype == torch.bfloat16
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error <= math.sqrt(10) * 2**-9


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tokens", [1, 3, 40])
@torch.no_grad()
def test_experts_that_no_token_chose_are_not_touched(path: str, tokens: int) -> None:
    """They are NaN, and nothing shows."""
    gate_up, down = matrices(9, 10, 6)
    x = torch.randn(tokens, 10, generator=torch.Generator().manual_seed(3))
    chosen, weights = routed(tokens, 4, 2)
    chosen = torch.tensor([1, 2, 5, 7])[chosen]
    expected = PATHS[path](x, chosen, weights, gate_up, down)
    for matrix in (gate_up, down):
        matrix[sorted(set(range(9)) - set(chosen.flatten().tolist()))] = float("nan")
    assert torch.equal(PATHS[path](x, chosen, weights, gate_up, down), expected)


class Recorded:
    """Matrices that note which were asked for."""

    def __init__(self, matrices: Tensor):
        self.matrices, self.asked = matrices, list[int]()

    def __getitem__(self, expert: int) -> Tensor:
        self.asked.append(expert)
        return self.matrices[expert]


@pytest.mark.parametrize("path", ["loop", "grouped"])
@torch.no_grad()
def test_each_chosen_expert_is_read_once(path: str) -> None:
    x, (chosen, weights) = torch.randn(30, 10), routed(30, 4, 2)
    asked = [Recorded(each) for each in matrices(9, 10, 6)]
    PATHS[path](x, chosen + 3, weights, *asked)
    for each in asked:
        assert each.asked == [3, 4, 5, 6]


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_no_token_is_dropped(path: str) -> None:
    """All go to one expert: it is a dense MLP then."""
    gate_up, down = matrices(4, 10, 6)
    x = torch.randn(100, 10, generator=torch.Generator().manual_seed(4))
    chosen, weights = torch.full((100, 1), 2), torch.ones(100, 1)
    dense = torch.nn.functional.linear(reference.gated_act(x @ gate_up[2].t()), down[2])
    assert (PATHS[path](x, chosen, weights, gate_up, down) - dense).abs().max() <= EXACT


def mixture(spec: MoESpec, ops: Ops = REFERENCE) -> MoE:
    made, generator = MoE(spec, 10, ops), torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(generator=generator).mul_(parameter.shape[-1] ** -0.5)
    return made


@settings(max_examples=30)
@given(st.permutations(range(6)), st.sampled_from(("softmax", "sigmoid", "softmax_chosen", "sparsemixer")))
@torch.no_grad()
def test_the_order_of_experts_does_not_matter(order: list[int], score: str) -> None:
    """Rows of the router, its correction and the experts permuted together."""
    router = RouterSpec(6, 2, score, bias=score == "sigmoid", jitter=0.1)  # type: ignore[arg-type]
    for ops in (REFERENCE, CPU):
        made, other = (mixture(MoESpec(router, 7, shared=GatedMLP(5)), ops) for _ in range(2))
        for name, parameter in made.named_parameters():
            if not name.startswith("shared"):
                other.get_parameter(name).data = parameter.data[order]
        x = torch.randn(2, 9, 10, generator=torch.Generator().manual_seed(5))
        assert (made(x) - other(x)).abs().max() <= EXACT


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_shared_experts_see_every_token(gated: bool) -> None:
    """y = routed + sigmoid(w x) shared(x), or without the gate routed + shared(x)."""
    spec = MoESpec(RouterSpec(6, 2), 7, shared=GatedMLP(5), shared_gate=gated)
    made = mixture(spec)
    alone = mixture(replace(spec, shared=None, shared_gate=False))
    alone.load_state_dict({k: v for k, v in made.state_dict().items() if not k.startswith("shared")})
    x = torch.randn(2, 9, 10, generator=torch.Generator().manual_seed(6))
    assert made.shared is not None
    gate = 1 / (1 + torch.exp(-(x @ made.shared_gate.weight[0])))[..., None] if made.shared_gate is not None else 1
    assert (made(x) - (alone(x) + gate * made.shared(x))).abs().max() <= EXACT
