"""A block that layers share: held once, computed once for each of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from minillm.model.cache import Cache
from minillm.model.costs import multiplied
from minillm.spec import GQA, Decoder, Fronted, GatedMLP, Layer, Norm, Rope, SharedBlock, StateSpace
from tests.helpers.specs import EXACT, build, random_tokens

NORM = Norm(1e-2)
BLOCK = SharedBlock(NORM, GQA(2, 2, 8, Rope(8, 100.0)), NORM, GatedMLP(20, "gelu"), 3, changes_attention=True)
FIRST = Fronted(BLOCK, NORM, StateSpace(4, 3, 2, 5, 4, Norm(0.1)))
SPEC = Decoder(
    31,
    16,
    tuple(Layer(None, Fronted(replace(BLOCK, of=of), NORM, FIRST.recurrent), None, None) for of in (None, 0, 0)),
    NORM,
    tied=True,
    context=64,
)


def test_weights_are_held_once_and_multiplied_by_each_layer() -> None:
    model = build(SPEC)
    held, counts = dict(model.named_parameters()), multiplied(model)
    for product in ("attention.qkv", "attention.out", "ffn.gate_up", "ffn.down"):
        name = f"layers.0.attention.block.{product}.weight"
        assert counts[name] == 3 * held[name].numel()
        assert f"layers.1.attention.block.{product}.weight" not in held
    own = "layers.1.attention.block.gate_up_change.down.weight"
    assert counts[own] == held[own].numel()


@torch.no_grad()
def test_any_cut_of_a_prompt_gives_the_same_and_each_use_has_its_keys() -> None:
    model, tokens = build(SPEC), random_tokens(2, 12)
    whole, changed = model(tokens), model.layers[2].attention.block.gate_up_change.up.weight
    for at in (1, 5, 11):
        cache = Cache(SPEC, 2, 12, torch.float32)
        found = torch.cat((model(tokens[:, :at], cache), model(tokens[:, at:], cache)), dim=1)
        assert (found - whole).abs().max() <= EXACT
    assert not torch.equal(cache.layers[0][0].k, cache.layers[1][0].k)
    changed.mul_(2.0)
    assert (model(tokens) - whole).abs().max() > 100 * EXACT
