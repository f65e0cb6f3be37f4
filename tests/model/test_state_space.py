"""State spaces: the chunks and the step against the recurrence in fp64; one position by the whole layer; two caches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.model.cache import Cache, LayerCache
from minillm.model.costs import state_bytes
from minillm.model.recurrent.states import StateCache
from minillm.ops import state_space
from minillm.spec import GQA, Beside, Decoder, GatedMLP, Layer, Norm, StateSpace
from tests.helpers.specs import EXACT, build, random_tokens

# fp32 against fp64, relative to the largest value or to 1; the largest seen over 400 problems was 4.5e-7.
RULE = 2e-6
NORM = Norm(1e-5)
MAMBA = StateSpace(6, 3, 2, 5, 4, Norm(0.1))


def in_order(
    x: Tensor, d: Tensor, decay: Tensor, b: Tensor, c: Tensor, skip: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence, position by position, in words of its own."""
    share, parts = x.shape[2] // b.shape[2], []
    for t in range(x.shape[1]):
        heads = []
        for h in range(x.shape[2]):
            kept = torch.exp(-d[:, t, h] * torch.exp(decay[h]))[:, None, None] * state[:, h]
            written = torch.einsum("bn,bp->bnp", b[:, t, h // share], x[:, t, h]) * d[:, t, h, None, None]
            state = torch.cat((state[:, :h], (kept + written)[:, None], state[:, h + 1 :]), dim=1)
            heads.append(torch.einsum("bnp,bn->bp", state[:, h], c[:, t, h // share]) + skip[h] * x[:, t, h])
        parts.append(torch.stack(heads, dim=1))
    return torch.stack(parts, dim=1), state


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 2),
    st.sampled_from((1, 2, 5, 63, 64, 65, 130)),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 7),
    st.sampled_from((0.0, 0.1, 3.0)),
)
def test_chunks_and_steps_are_the_recurrence(
    batch: int, count: int, groups: int, share: int, size: int, step: float
) -> None:
    made, heads = torch.Generator().manual_seed(count * 100 + size), groups * share
    x, d = torch.randn(batch, count, heads, 4, generator=made), step * torch.rand(batch, count, heads, generator=made)
    (decay, skip), (b, c) = (
        torch.randn(2, heads, generator=made),
        torch.randn(2, batch, count, groups, size, generator=made),
    )
    given = x, d, decay, b, c, skip, torch.randn(batch, heads, size, 4, generator=made)
    expected, last = in_order(*(each.double() for each in given))
    found, state = state_space.scan(*given)
    assert (found - expected).abs().max() <= RULE * max(1, float(expected.abs().max()))
    assert (state - last).abs().max() <= RULE * max(1, float(last.abs().max()))


@pytest.mark.parametrize("norm", [None, 0.1])
def test_the_gate_comes_before_the_norm_of_each_group(norm: float | None) -> None:
    made = torch.Generator().manual_seed(0)
    y, gate, weight = torch.randn(2, 3, 12, generator=made), torch.randn(2, 3, 12, generator=made), torch.rand(12)
    v = y.double() * gate.double() * gate.double().sigmoid()
    if norm is not None:
        v = torch.cat([p / (p.square().mean(-1, keepdim=True) + norm).sqrt() for p in v.split(4, dim=-1)], -1) * weight
    found = state_space.gated_group_norm(y, gate, None if norm is None else weight, 3, norm or 0.0)
    assert (found - v).abs().max() <= 1e-6


def test_steps_stay_within_their_limits() -> None:
    d = torch.linspace(-20, 20, 41).view(1, -1, 1)
    found = state_space.steps(d, torch.zeros(1), (0.5, 2.0))
    assert (found.min(), found.max()) == (0.5, 2.0)
    assert state_space.steps(d, torch.zeros(1), (0.0, None)).max() == 20


@torch.no_grad()
def test_beside_attention_a_layer_keeps_two_things() -> None:
    """Keys, which grow, and a state, which does not; a prompt in pieces is the prompt."""
    mixer = Beside(GQA(4, 2, 8, None), dataclasses.replace(MAMBA, norm=None), (0.5, 2.0))
    spec = Decoder(31, 16, (Layer(NORM, mixer, NORM, GatedMLP(20)),), NORM, tied=False, context=64)
    model, tokens = build(spec), random_tokens(1, 20)
    cache = Cache(spec, 1, 20, torch.float32)
    keys, state = cache.layers[0]  # type: ignore[misc]
    assert isinstance(keys, LayerCache)
    assert isinstance(state, StateCache)
    assert state_bytes(spec, 4) == state.state.nbytes + state.inputs.nbytes
    pieces = torch.cat([model(piece, cache) for piece in tokens.split([7, 1, 11, 1], dim=1)], dim=1)
    assert (pieces - model(tokens)).abs().max() <= EXACT
