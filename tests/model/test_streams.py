"""Several residual streams, and gates of which little is left, by their formulas in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minillm.model.residual.streams import LayerStreams, Streams
from minillm.ops import REFERENCE
from minillm.ops.reference import above_quantile
from minillm.spec import GQA, GatedMLP, Layer, Norm, Rope
from minillm.spec import Decoder as Spec
from minillm.spec import Streams as StreamsSpec
from tests.helpers.specs import build, random_tokens

SIZE, COUNT = 12, 3
SPEC = StreamsSpec(COUNT, Norm(1e-6))


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    for at, parameter in enumerate(module.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(at)).double()
    return module


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_about_that_share_is_zero(share: float) -> None:
    """Of a million normally distributed values, whatever their mean and size; the rest by how far it is above."""
    x = torch.randn(10**6, generator=torch.Generator().manual_seed(0)).double()
    y = above_quantile(3 * x - 7, share)
    assert (y == 0).double().mean().item() == pytest.approx(share, abs=2e-3)  # over four standard deviations
    cut = x.quantile(share)
    assert (y - 3 * (x - cut).clamp(min=0)).abs().max() < 0.02


@torch.no_grad()
def test_a_layer_moves_all_streams() -> None:
    """One number after the other, as the formulas are written."""
    made, x, y = (
        drawn(LayerStreams(SPEC, SIZE, REFERENCE)),
        torch.randn(COUNT, SIZE).double(),
        torch.randn(SIZE).double(),
    )

    def routed(u: torch.Tensor) -> torch.Tensor:
        normed = u / (u.square().mean() + 1e-6).sqrt() * made.norm.weight
        return torch.tanh(made.router.weight @ normed / SIZE)

    mixed = (made.predict.weight @ routed(x[0])).view(COUNT, COUNT)
    z = torch.stack([x[j] + sum(mixed[j, i] * x[i] for i in range(COUNT)) for j in range(COUNT)])
    share = made.correct.weight @ routed(y)
    after = torch.stack([z[j] + (1 + share[j]) * (y - z[0]) for j in range(COUNT)])
    assert (made.foreseen(x[None, None]) - z).abs().max() < 1e-6  # the norm is in fp32
    assert (made.corrected(z[None, None], y[None, None]) - after).abs().max() < 1e-6


@torch.no_grad()
def test_streams_begin_and_end_as_long_as_the_first() -> None:
    made, x = drawn(Streams(SPEC, SIZE, REFERENCE)), torch.randn(1, 2, SIZE).double()
    parted = made.parted(x)
    assert torch.equal(parted[..., 0, :], x)
    lengths = parted.square().mean(-1)
    assert (lengths - lengths[..., :1]).abs().max() < 1e-12
    first, *others = parted.unbind(-2)
    ended = [product(each) for product, each in zip(made.end, others, strict=True)]
    scaled = [each * first.norm(dim=-1, keepdim=True) / each.norm(dim=-1, keepdim=True) for each in ended]
    assert (made.merged(parted) - (first + sum(scaled)) / COUNT).abs().max() < 1e-12


@torch.no_grad()
def test_a_single_stream_is_the_plain_sum() -> None:
    """Where nothing is foreseen and nothing corrected but what the layer made of it."""
    norm = Norm(1e-5)
    spec = Spec(31, 16, (Layer(norm, GQA(2, 1, 8, Rope(8, 50.0)), norm, GatedMLP(20)),) * 2, norm, True, context=64)
    plain, several = build(spec), build(replace(spec, streams=StreamsSpec(1, norm)))
    for name, parameter in several.named_parameters():
        if ".streams." in name:
            parameter.zero_()
    several.load_state_dict(plain.state_dict(), strict=False)
    tokens = random_tokens(2, 9)
    assert (several(tokens) - plain(tokens)).abs().max() < 1e-5
