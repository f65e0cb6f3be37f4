"""Gated DeltaNet: the chunks and the step against the recurrence in fp64; gated convolutions; what caches keep."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.engine.batching.request import Request
from minillm.engine.batching.room import SIZE
from minillm.engine.batching.store import Store
from minillm.families import resolve
from minillm.model.cache import Cache
from minillm.model.costs import state_bytes
from minillm.model.pools import Group, Pools, group_of
from minillm.model.recurrent.states import StateCache
from minillm.ops import recurrent
from minillm.ops.cpu import recurrent as loops
from minillm.spec import (
    GQA,
    Beside,
    ChannelDelta,
    Decoder,
    Gate,
    GatedConv,
    GatedDeltaNet,
    GatedMLP,
    GatedRecurrence,
    Layer,
    Mixer,
    Norm,
    Rope,
    SelectiveScan,
    StateSpace,
)
from tests.helpers.hybrid_rows import HYBRID as HYBRID_ROWS
from tests.helpers.recurrent_problems import in_order
from tests.helpers.sizes import BASE
from tests.helpers.specs import EXACT, build, random_tokens
from tests.helpers.state_rows import STATE as STATE_ROWS

# fp32 against fp64, of values of size 1 or relative to larger ones; the largest seen over 400 problems was 1.5e-6.
RULE = 5e-6
NORM, CPU = Norm(1e-5), torch.device("cpu")
DELTA = GatedDeltaNet(2, 4, 5, 3, 4, Norm(0.1))
CONV = GatedConv(7, 4)


def model_of(*mixers: Mixer) -> Decoder:
    layers = tuple(Layer(NORM, mixer, NORM, GatedMLP(20)) for mixer in mixers)
    return Decoder(31, 16, layers, NORM, tied=False, context=4096)


BY_CHANNEL, BOUNDED = ChannelDelta(3, 5, 4, Norm(0.1), rank=6), ChannelDelta(2, 4, 3, Norm(0.1), bound=-4.0)
SIGNED = dataclasses.replace(DELTA, beta_factor=2.0)
FULL = GQA(2, 1, 8, Rope(8, 100.0), weakened=Gate(with_q=True))
MAMBA = StateSpace(4, 3, 2, 5, 4, Norm(0.1), bias=True)
SELECTIVE = SelectiveScan(10, 5, 3, 4, Norm(0.1), bias=True)
GATED = GatedRecurrence(2, 3, 4, "gelu_tanh")
BESIDE = Beside(FULL, dataclasses.replace(MAMBA, norm=None))
HYBRID = model_of(DELTA, FULL, SIGNED, MAMBA, BESIDE, CONV, SELECTIVE, GATED, BY_CHANNEL, BOUNDED)


def problem(batch: int, count: int, group: int, keys: int, values: int, decay: float) -> tuple[Tensor, ...]:
    """q, k, v, g, beta and a state."""
    made = torch.Generator().manual_seed(count * 100 + keys)
    q, k = torch.randn(2, batch, count, 2, keys, generator=made)
    v = torch.randn(batch, count, 2 * group, values, generator=made)
    g = -decay * torch.rand(batch, count, 2 * group, generator=made)
    beta = 2 * torch.rand(batch, count, 2 * group, generator=made)
    return q, k, v, g, beta, torch.randn(batch, 2 * group, keys, values, generator=made)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2),
    st.sampled_from((1, 2, 5, 63, 64, 65, 130)),
    st.integers(1, 3),
    st.integers(2, 9),
    st.integers(1, 7),
    st.sampled_from((0.0, 0.1, 3.0)),
)
def test_chunks_and_steps_are_the_recurrence(
    batch: int, count: int, group: int, keys: int, values: int, decay: float
) -> None:
    given = problem(batch, count, group, keys, values, decay)
    expected, last = in_order(*(each.double() for each in given))
    found, state = recurrent.delta_rule(*given)
    assert (found - expected).abs().max() <= RULE * max(1, float(expected.abs().max()))
    assert (state - last).abs().max() <= RULE * max(1, float(last.abs().max()))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2),
    st.sampled_from((1, 2, 5, 15, 16, 17, 50)),
    st.integers(2, 9),
    st.integers(1, 7),
    st.sampled_from((0.0, 0.1, 3.0, 90.0)),
)
def test_chunks_and_steps_are_the_recurrence_by_channel(
    batch: int, count: int, keys: int, values: int, decay: float
) -> None:
    """Where all is forgotten at once too: no power of e is too large."""
    q, k, v, _, beta, state = problem(batch, count, 1, keys, values, 0.0)
    made = torch.Generator().manual_seed(count)
    g = -decay * torch.rand(k.shape, generator=made)
    expected, last = in_order(*(each.double() for each in (q, k, v, g, beta, state)))
    for form in (recurrent.channel_rule, loops.channel_rule):
        found, left = form(q, k, v, g, beta, state)
        assert (found - expected).abs().max() <= RULE * max(1, float(expected.abs().max()))
        assert (left - last).abs().max() <= RULE * max(1, float(last.abs().max()))


def test_rates_by_channel_are_their_formulas() -> None:
    made = torch.Generator().manual_seed(0)
    f, step = torch.randn(2, 3, 8, generator=made), torch.randn(8, generator=made)
    decay = torch.randn(2, generator=made)
    rate, y = decay.exp().view(2, 1), (f + step).view(2, 3, 2, 4)
    assert torch.allclose(recurrent.channel_gates(f, decay, step, None), -rate * (1 + y.exp()).log(), atol=1e-5)
    assert torch.allclose(recurrent.channel_gates(f, decay, step, -4.0), -4 / (1 + (-rate * y).exp()), atol=1e-5)
    x, gate, weight = (torch.randn(3, 5, generator=made) for _ in range(3))
    expected = weight[0] * x / (x.square().mean(-1, True) + 0.1).sqrt() / (1 + (-gate).exp())
    assert torch.allclose(recurrent.opened_rms_norm(x, gate, weight[0], 0.1), expected, atol=1e-6)


def test_the_convolution_and_the_gated_norm_are_their_formulas() -> None:
    made = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 9, 5, generator=made), torch.randn(5, 4, generator=made)
    y = sum(weight[:, j].double() * x[:, j : j + 6].double() for j in range(4))
    assert (recurrent.short_conv(x, weight) - y * y.sigmoid()).abs().max() <= 1e-6
    assert (recurrent.causal_conv(x, weight) - y).abs().max() <= 1e-6
    gate, scale = torch.randn(2, 9, 5, generator=made), torch.randn(5, generator=made)
    normed = scale * x.double() / (x.double().square().mean(-1, keepdim=True) + 0.1).sqrt()
    expected = normed * gate * gate.double().sigmoid()
    assert (recurrent.gated_rms_norm(x, gate, scale, 0.1) - expected).abs().max() <= 1e-6


@torch.no_grad()
def test_a_gated_convolution_is_its_formula() -> None:
    """At once, and a position at a time, with what is kept and nothing else."""
    spec = model_of(CONV)
    layer, x = build(spec).layers[0].attention, torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    b, c, u = (x.double() @ layer.bcu.weight.double().T).split(7, dim=-1)
    given, weight = torch.nn.functional.pad(b * u, (0, 0, 3, 0)), layer.conv.double()
    mixed = sum(weight[:, j] * given[:, j : j + 9] for j in range(4))
    expected, step = (c * mixed) @ layer.output.weight.double().T, build(spec).step(torch.zeros(2, 9).long(), None)
    assert (layer(x, step, None) - expected).abs().max() <= RULE
    cache = Cache(spec, 2, 9, torch.float32).layers[0]
    for t in range(9):
        alone = dataclasses.replace(step, first=t)
        assert (layer(x[:, t : t + 1], alone, cache)[:, 0] - expected[:, t]).abs().max() <= RULE
    assert state_bytes(spec, 4) == 4 * 4 * 7 == cache.inputs[0].nbytes + cache.state[0].nbytes


@pytest.mark.parametrize("capacity", [1, 100, 4096])
def test_a_state_is_as_large_behind_any_number_of_positions(capacity: int) -> None:
    spec = model_of(DELTA, DELTA)
    cache = Cache(spec, 1, capacity, torch.float32)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.state, layer.inputs))
    assert held == state_bytes(spec, 4) == 2 * (2 * 4 * 4 * 5 * 3 + 4 * 4 * (4 * 5 + 4 * 3))
    assert all(layer.state.dtype == torch.float32 for layer in Cache(spec, 1, 9, torch.bfloat16).layers)


class Counted:
    """Blocks of the engine, without their memory."""

    def __init__(self, blocks: dict[Group, int]):
        self.blocks = blocks

    def copy(self, group: Group, source: int, target: int) -> None:
        pass

    def clear(self, block: int) -> None:
        pass


ALONE = ("mamba2", "mamba", "falcon_mamba", "recurrent_gemma")  # no other layers, or with a window alone
ROWS = {row: each for row, each in {**HYBRID_ROWS, **STATE_ROWS}.items() if row not in ALONE}


@pytest.mark.parametrize("row", ROWS)
def test_memory_of_recurrent_layers_is_constant_in_length(row: str) -> None:
    """Of every family that has some: in a cache, and in the engine's blocks; that of the other layers grows."""
    family, overrides = ROWS[row]
    spec, _, _ = resolve({**BASE, **overrides, "model_type": family})
    bytes_of = {}
    for length in (64, 4096):
        recurrent, others = (
            sum(each.nbytes for layer in layers for each in vars(layer).values() if isinstance(each, Tensor))
            for layers in sorted_by_kind(flat(Cache(spec, 1, length, torch.bfloat16).layers))
        )
        blocks = {group: 1024 for layer in spec.layers for group in map(group_of, layer.mixers)}
        store = Store(build(spec), Counted({**blocks, "state": 4}), piece=64)
        request = Request(None)  # type: ignore[arg-type]
        assert store.grow(request, length)
        pools = Pools(spec, {group: len(table) for group, table in request.tables.items()}, SIZE, torch.bfloat16, CPU)
        pooled = sum(layer.state.nbytes + layer.inputs.nbytes for layer in pools.of("state"))
        bytes_of[length] = recurrent, pooled, others, sum(layer.k.nbytes for layer in pools.of(None))
    short, long = bytes_of[64], bytes_of[4096]
    assert short[:2] == long[:2]
    assert 0 < short[0] == short[1] == state_bytes(spec, 2)
    assert long[2] == 64 * short[2] or set(blocks) != {"state", None}  # where layers have windows too
    assert long[3] == 64 * short[3]


def flat(layers: list[Any]) -> list[Any]:
    """What layers keep, one or several each."""
    return [each for layer in layers for each in (layer if isinstance(layer, tuple) else (layer,)) if each is not None]


def sorted_by_kind(layers: list[Any]) -> tuple[list[Any], list[Any]]:
    """Those with a state, and the others."""
    return [each for each in layers if isinstance(each, StateCache)], [
        each for each in layers if not isinstance(each, StateCache)
    ]


@torch.no_grad()
def test_padding_leaves_no_trace() -> None:
    """The state of a padded row is that of the row alone, to the last bit where it is all padding."""
    model, rows = build(HYBRID), [random_tokens(12, seed=0), random_tokens(3, seed=1)]
    cache = Cache(HYBRID, 2, 12, torch.float32, padding=[0, 9])
    model(torch.stack((rows[0], torch.cat((random_tokens(9, seed=2), rows[1])))), cache)
    alone = Cache(HYBRID, 1, 3, torch.float32)
    model(rows[1][None], alone)
    for layer, single in zip(flat(cache.layers), flat(alone.layers), strict=True):
        if isinstance(layer, StateCache):
            for both, other in zip(layer.before(12), single.before(3), strict=True):
                assert torch.allclose(both[1], other[0], rtol=0, atol=EXACT)
    padded = Cache(HYBRID, 1, 9, torch.float32, padding=[9])
    model(random_tokens(1, 9), padded)
    for layer in sorted_by_kind(flat(padded.layers))[0]:
        assert not layer.state.any()
        assert not layer.inputs.any()
