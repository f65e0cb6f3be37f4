"""Selective state spaces: the scan against the recurrence in fp64, and a layer's memory, at once and by position."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from minillm.model.cache import Cache
from minillm.model.costs import state_bytes
from minillm.ops import selective
from minillm.spec import Decoder, Layer, Norm, SelectiveScan
from tests.helpers.selective_problems import in_order
from tests.helpers.specs import EXACT, build, random_tokens

RULE = 2e-6  # as in test_state_space.py
NORM, SPACE = Norm(1e-5), SelectiveScan(10, 5, 3, 4, Norm(0.1))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 130])
def test_the_scan_is_the_recurrence(count: int) -> None:
    made = torch.Generator().manual_seed(count)
    x, z, d = torch.randn(3, 2, count, 4, generator=made)
    b, c = torch.randn(2, 2, count, 3, generator=made)
    decay, skip, state = (torch.randn(*shape, generator=made) for shape in ((3, 4), (4,), (2, 1, 3, 4)))
    given = x, z, d.abs(), b, c, decay, skip, state
    y, last = selective.selective_scan(*given)
    expected, behind, _ = in_order(*(each.double() for each in given))
    assert (y - expected).abs().max() <= RULE * max(1, float(expected.abs().max()))
    assert (last - behind).abs().max() <= RULE * max(1, float(behind.abs().max()))


@torch.no_grad()
def test_a_layer_is_its_formula() -> None:
    """With what is kept, at once and a position at a time, and with nothing kept."""
    spec = Decoder(31, 16, (Layer(NORM, SPACE, None, None),), NORM, tied=False, context=64)
    model = build(spec)
    layer, x = model.layers[0].attention, torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    expected, step = formula(layer, x.double()), model.step(torch.zeros(2, 9).long(), None)
    assert (layer(x, step, None) - expected).abs().max() <= RULE * 5
    cache = Cache(spec, 2, 9, torch.float32).layers[0]
    for t in range(9):
        alone = dataclasses.replace(step, first=t)
        assert (layer(x[:, t : t + 1], alone, cache)[:, 0] - expected[:, t]).abs().max() <= RULE * 5
    assert state_bytes(spec, 4) == 2 * 4 * 5 * 10 + 4 * 4 * 10 == cache.inputs[0].nbytes + cache.state[0].nbytes


def formula(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """y of x `[B, T, E]` in fp64."""
    held = {name: each.double() for name, each in layer.named_parameters()}
    r, z = (x @ held["xz.weight"].T).split(10, dim=-1)
    padded = torch.nn.functional.pad(r, (0, 0, 3, 0))
    mixed = sum(held["conv.weight"][:, j] * padded[:, j : j + x.shape[1]] for j in range(4)) + held["conv.bias"]
    r = mixed * mixed.sigmoid()
    parts = [
        each / (each.square().mean(-1, keepdim=True) + 0.1).sqrt() * held[f"{part}_norm.weight"]
        for part, each in zip("dbc", (r @ held["dbc.weight"].T).split((3, 5, 5), dim=-1), strict=True)
    ]
    d = (1 + (parts[0] @ held["step.weight"].T + held["step.bias"]).exp()).log()
    y, _, _ = in_order(r, z, d, *parts[1:], held["decay"], held["skip"], torch.zeros(len(x), 1, 5, 10).double())
    return y @ held["output.weight"].T


@torch.no_grad()
def test_any_cut_of_a_prompt_gives_the_same() -> None:
    spec = Decoder(31, 16, (Layer(NORM, SPACE, None, None),) * 2, NORM, tied=False, context=256)
    model, tokens = build(spec), random_tokens(2, 70)
    whole = model(tokens)
    for at in (1, 3, 63, 64, 69):
        cache = Cache(spec, 2, 70, torch.float32)
        found = torch.cat((model(tokens[:, :at], cache), model(tokens[:, at:], cache)), dim=1)
        assert (found - whole).abs().max() <= EXACT
