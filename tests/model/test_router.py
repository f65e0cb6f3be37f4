"""Routers against expectations computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from minillm.model.decoder import skeleton
from minillm.model.moe import Router
from minillm.spec import GQA, Layer, Norm, Rope
from minillm.spec import Decoder as DecoderSpec
from minillm.spec import MoE as MoESpec
from minillm.spec import Router as RouterSpec


def logarithms(*values: float) -> list[float]:
    """Logits whose softmax is in the proportions of the values."""
    return [math.log(value) for value in values]


def logits_of(*values: float) -> list[float]:
    """Logits whose sigmoids are the values."""
    return [math.log(value / (1 - value)) for value in values]


TENTHS = logarithms(4, 3, 2, 1)
DEVIATION = math.sqrt(3) + 1e-5  # of 0, 0, 3, unbiased

# What is chosen, best first, and with what weights: (router, a token's logits, correction or None, experts, weights).
ROUTED = {
    "softmax over all": (RouterSpec(4, 2), TENTHS, None, [0, 1], [0.4, 0.3]),
    "renormalised": (RouterSpec(4, 2, renormalize=True), TENTHS, None, [0, 1], [4 / 7, 3 / 7]),
    "softmax of the chosen": (RouterSpec(4, 3, "softmax_chosen"), TENTHS, None, [0, 1, 2], [4 / 9, 3 / 9, 2 / 9]),
    "scaled": (RouterSpec(4, 2, scale=2.5), TENTHS, None, [0, 1], [1.0, 0.75]),
    "scaled after renormalising": (
        RouterSpec(4, 2, renormalize=True, scale=7.0),
        TENTHS,
        None,
        [0, 1],
        [4.0, 3.0],
    ),
    "sigmoid": (RouterSpec(4, 2, "sigmoid"), logits_of(0.2, 0.9, 0.5, 0.7), None, [1, 3], [0.9, 0.7]),
    "the correction chooses and does not weigh": (
        RouterSpec(4, 2, "sigmoid", bias=True),
        logits_of(0.2, 0.9, 0.5, 0.7),
        [1.0, 0.0, 0.0, 0.0],
        [0, 1],
        [0.2, 0.9],
    ),
    "the correction and renormalised weights": (
        RouterSpec(4, 2, "sigmoid", renormalize=True, scale=11.0, bias=True),
        logits_of(0.2, 0.9, 0.5, 0.7),
        [1.0, 0.0, 0.0, 0.0],
        [0, 1],
        [2.0, 9.0],
    ),
    "groups by their best": (
        RouterSpec(6, 2, "sigmoid", num_groups=3, top_groups=1),
        logits_of(0.9, 0.1, 0.7, 0.6, 0.8, 0.3),
        None,
        [0, 1],
        [0.9, 0.1],
    ),
    "groups by the sum of their two best": (
        RouterSpec(9, 2, "sigmoid", num_groups=3, top_groups=1, group_score="top2_sum"),
        logits_of(0.9, 0.1, 0.2, 0.7, 0.6, 0.01, 0.5, 0.5, 0.5),  # sums 1.1, 1.3 and 1.0; of all three 1.2, 1.31, 1.5
        None,
        [3, 4],
        [0.7, 0.6],
    ),
    "two groups of three": (
        RouterSpec(6, 3, "sigmoid", num_groups=3, top_groups=2),
        logits_of(0.9, 0.1, 0.7, 0.6, 0.8, 0.3),
        None,
        [0, 4, 5],
        [0.9, 0.8, 0.3],
    ),
    "groups left out count as minus infinity, not 0": (  # corrected: -0.1, -0.6 | -0.5, -0.4
        RouterSpec(4, 2, "sigmoid", bias=True, num_groups=2, top_groups=1, group_score="top2_sum"),
        logits_of(0.9, 0.4, 0.5, 0.6),
        [-1.0] * 4,
        [0, 1],
        [0.9, 0.4],
    ),
    "standardised logits": (
        RouterSpec(3, 2, normalize="logits"),
        [0.0, -0.0, 3.0],
        None,
        [2, 0],
        [1 / (1 + 2 * math.exp(-3 / DEVIATION)), 1 / (2 + math.exp(3 / DEVIATION))],
    ),
    "SparseMixer": (  # of 1: 0.99 and 0.985 are near, 0.5 is far; of 0.99: 0.985 is near, and 1 is taken
        RouterSpec(4, 2, "sparsemixer", jitter=0.01),
        [0.5, 1.0, 0.985, 0.99],
        None,
        [1, 3],
        [1 / (1 + math.exp(-0.01) + math.exp(-0.015)), 1 / (1 + math.exp(-0.005))],
    ),
    "SparseMixer divides by the larger size": (  # (0.1 + 5) / 5 = 1.02 is near for 2 * 0.6, (0.1 + 0.4) / 0.4 is not
        RouterSpec(3, 1, "sparsemixer", jitter=0.6),
        [-5.0, 0.1, -0.4],
        None,
        [1],
        [1 / (1 + math.exp(-5.1))],
    ),
    "SparseMixer divides by the best where that is larger": (  # (1 - 0.5) / 1 = 0.5 is near for 2 * 0.3
        RouterSpec(3, 1, "sparsemixer", jitter=0.3),
        [0.1, 1.0, 0.5],
        None,
        [1],
        [1 / (1 + math.exp(-0.5))],
    ),
}


def router_of(spec: RouterSpec, bias: list[float] | None) -> Router:
    """Logits are the input itself."""
    router = Router(spec, spec.num_experts)
    router.weight.data = torch.eye(spec.num_experts)
    if router.bias is not None:
        router.bias.data = torch.tensor(bias)
    return router


@pytest.mark.parametrize("name", ROUTED)
@torch.no_grad()
def test_routing_by_hand(name: str) -> None:
    spec, logits, bias, experts, weights = ROUTED[name]
    others = torch.randn(3, spec.num_experts, generator=torch.Generator().manual_seed(0))
    routing = router_of(spec, bias)(torch.cat((torch.tensor([logits]), others)))
    assert routing.experts[0].tolist() == experts
    assert routing.weights[0].tolist() == pytest.approx(weights, rel=2e-6)  # a dozen fp32 roundings of 1.2e-7 at most
    assert routing.logits[0].tolist() == pytest.approx(logits)
    assert routing.weights.dtype == routing.logits.dtype == torch.float32


@torch.no_grad()
def test_a_router_rounds_nothing() -> None:
    """In a bf16 model weights that only fp32 tells apart still decide, and parameters stay fp32."""
    layers = (Layer(Norm(1e-5), GQA(2, 1, 8, Rope(8, 100.0)), Norm(1e-5), MoESpec(RouterSpec(3, 1, bias=True), 8)),)
    made = skeleton(DecoderSpec(31, 16, layers, Norm(1e-5), tied=False, context=64), torch.bfloat16)
    assert {p.dtype for name, p in made.named_parameters() if ".router." in name} == {torch.float32}
    assert made.get_parameter("layers.0.ffn.experts.down").dtype == torch.bfloat16
    router = Router(RouterSpec(3, 1), 2)
    router.weight.data = torch.tensor([[1.0, 0.0], [1.0, 1e-4], [1.0, -1e-4]])
    assert router(torch.ones(1, 2, dtype=torch.bfloat16)).experts.tolist() == [[1]]
