"""Balancing losses against transformers, hand and fp64; the bias that balances without a loss; what a model reports."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from minillm.model.balance import expert_load, load_balancing_loss, router_z_loss, updated_bias
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder
from minillm.model.moe import Router
from minillm.spec import GQA, GatedMLP, Layer, MoE, Norm, Rope
from minillm.spec import Decoder as Spec
from minillm.spec import Router as RouterSpec


def drawn(layers: int, tokens: int, experts: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(tokens, experts, generator=generator) for _ in range(layers)]


@given(st.integers(1, 4), st.integers(1, 30), st.integers(2, 9), st.data())
def test_the_loss_is_transformers(layers: int, tokens: int, experts: int, data: st.DataObject) -> None:
    """Mixtral's loss over all layers at once, its mean frequencies times its mean probabilities."""
    top_k = data.draw(st.integers(1, experts))
    logits = drawn(layers, tokens, experts)
    chosen = [each.softmax(-1).topk(top_k).indices for each in logits]
    expected = load_balancing_loss_func(tuple(logits), experts, top_k)
    assert load_balancing_loss(torch.cat(logits), torch.cat(chosen)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_by_hand() -> None:
    """k when all is even, E when one expert gets everything, between them E times the sum over e of f_e P_e."""
    even = torch.tensor([[0, 1], [2, 3], [4, 5]])
    assert load_balancing_loss(torch.zeros(3, 6), even).item() == pytest.approx(2.0)
    collapsed = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).expand(5, 4)
    assert load_balancing_loss(collapsed, torch.zeros(5, 1, dtype=torch.long)).item() == pytest.approx(4.0)
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0], [0.0, math.log(3)], [math.log(3), 0.0]])
    chosen = torch.tensor([[0], [0], [1], [0]])  # frequencies 3/4, 1/4; probabilities 5/8, 3/8
    assert load_balancing_loss(logits, chosen).item() == pytest.approx(2 * (3 / 4 * 5 / 8 + 1 / 4 * 3 / 8))


def test_the_gradient_goes_through_probabilities_only() -> None:
    """d/dl_nj of E sum_e f_e P_e = E / N * p_nj (f_j - sum_e f_e p_ne), frequencies being counts."""
    (logits,) = drawn(1, 11, 5)
    logits.requires_grad_(True)
    chosen = logits.topk(2).indices
    load_balancing_loss(logits, chosen).backward()
    p, f = logits.detach().double().softmax(-1), expert_load(chosen, 5).double() / 11
    expected = 5 / 11 * p * (f - (p * f).sum(-1, keepdim=True))
    assert logits.grad is not None
    assert (logits.grad - expected).abs().max() <= 1e-6 * expected.abs().max()  # a dozen fp32 roundings


def test_z_loss() -> None:
    assert router_z_loss(torch.zeros(7, 8)).item() == pytest.approx(math.log(8) ** 2)
    (logits,) = drawn(1, 13, 6)
    expected = logits.double().exp().sum(-1).log().square().mean().item()
    assert router_z_loss(logits).item() == pytest.approx(expected, rel=1e-6)
    assert router_z_loss(torch.full((2, 4), 1000.0)).item() == pytest.approx((1000 + math.log(4)) ** 2)  # no overflow


def test_the_bias_moves_by_the_rate_against_the_load() -> None:
    bias = torch.tensor([0.5, -0.25, 0.0, 0.125])
    moved = updated_bias(bias, torch.tensor([10, 2, 5, 3]), rate=0.125)  # the mean load is 5
    assert moved.tolist() == [0.375, -0.125, 0.0, 0.25]
    assert bias.tolist() == [0.5, -0.25, 0.0, 0.125]


@settings(max_examples=20)
@given(st.integers(2, 12), st.integers(0, 99))
@torch.no_grad()
def test_the_bias_balances_a_skewed_router(experts: int, seed: int) -> None:
    """Without any training, by the rule alone: the busiest expert ends near its share."""
    router = Router(RouterSpec(experts, 1, "sigmoid", bias=True), 8)
    generator = torch.Generator().manual_seed(seed)
    router.weight.data = 0.3 * torch.randn(experts, 8, generator=generator)
    x = torch.randn(2000, 8, generator=generator) + torch.randn(8, generator=generator)
    assert router.bias is not None
    for _ in range(600):
        router.bias.copy_(updated_bias(router.bias, expert_load(router(x).experts, experts), 0.002))
    assert expert_load(router(x).experts, experts).max() <= 1.15 * 2000 / experts


@given(st.integers(1, 20), st.integers(1, 9), st.data())
def test_load_counts_every_choice(tokens: int, experts: int, data: st.DataObject) -> None:
    chosen = drawn(1, tokens, experts)[0].topk(data.draw(st.integers(1, experts))).indices
    load = expert_load(chosen, experts)
    assert load.tolist() == [int((chosen == expert).sum()) for expert in range(experts)]


@pytest.fixture(scope="module")
def model() -> Decoder:
    """A dense layer between two mixtures of different sizes."""
    norm, attention = Norm(1e-5), GQA(2, 1, 8, Rope(8, 100.0))
    ffns = (MoE(RouterSpec(5, 2), 8), GatedMLP(20), MoE(RouterSpec(4, 3, "sigmoid"), 6))
    layers = tuple(Layer(norm, attention, norm, ffn) for ffn in ffns)
    return Decoder(Spec(31, 16, layers, norm, tied=False, context=64))


@torch.no_grad()
def test_collected_routing_is_what_the_routers_said(model: Decoder) -> None:
    """One entry per layer, None without a router, for a prompt and for a token behind it; logits are the same."""
    tokens = torch.arange(12).view(2, 6)
    logits, routing = model(tokens, collect_routing=True)
    assert torch.equal(logits, model(tokens))
    assert [None if r is None else (*r.experts.shape, r.logits.shape[1]) for r in routing] == [
        (12, 2, 5),
        None,
        (12, 3, 4),
    ]
    cache = Cache(model.spec, 2, 6, torch.float32)
    model(tokens[:, :5], cache)
    _, last = model(tokens[:, 5:], cache, collect_routing=True)
    for whole, step in zip(routing, last, strict=True):
        if whole is not None:
            assert torch.equal(step.experts, whole.experts.view(2, 6, -1)[:, 5])
            assert (step.weights - whole.weights.view(2, 6, -1)[:, 5]).abs().max() <= 1e-5


def test_collecting_leaves_nothing_behind(model: Decoder) -> None:
    """No hook stays, not even behind an error: off by default means no cost."""
    model(torch.arange(4)[None], collect_routing=True)
    with pytest.raises(IndexError):
        model(torch.tensor([[99]]), collect_routing=True)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_loss_on_collected_routing_trains_the_router(model: Decoder) -> None:
    _, routing = model(torch.arange(12)[None], collect_routing=True)
    load_balancing_loss(routing[0].logits, routing[0].experts).backward()
    gradient = model.layers[0].ffn.router.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
