"""Recurrent families as published: a text model inside one that reads images, experts in one tensor or one each, and
layers that predict several tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minillm.families import resolve
from minillm.model.decoder import skeleton
from minillm.weights.layout import parse
from minillm.weights.rules import plan
from tests.helpers.rows import BASE, ROWS

OUTER = {"image_token_id": 5, "video_token_id": 6, "vision_config": {"depth": 1}, "tie_word_embeddings": False}
LEFT_OUT = ("model.visual.blocks.0.attn.qkv.weight", "mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight")
MROPE = {"rope_theta": 1e7, "mrope_section": [1, 1, 0], "mrope_interleaved": True, "rope_type": "default"}


def config(row: str, **more: Any) -> dict[str, Any]:
    family, overrides = ROWS[row]
    text = {**BASE, **overrides, "model_type": family, **more}
    return {"model_type": family.removesuffix("_text"), "text_config": text, **OUTER}


def names(experts: int | None, layers: tuple[bool, ...], prefix: str) -> list[str]:
    """Of the tensors of a checkpoint; `layers` are true where they attend."""
    found = [f"{prefix}embed_tokens.weight", f"{prefix}norm.weight", "lm_head.weight"]
    for i, attends in enumerate(layers):
        layer = f"{prefix}layers.{i}."
        found += [f"{layer}{norm}_layernorm.weight" for norm in ("input", "post_attention")]
        projections = [f"self_attn.{each}_proj.weight" for each in "qkvo"]
        inputs = [f"linear_attn.in_proj_{each}.weight" for each in ("qkv", "z", "b", "a")]
        rest = ["A_log", "dt_bias", "conv1d.weight", "norm.weight", "out_proj.weight"]
        recurrent = [*inputs, *(f"linear_attn.{each}" for each in rest)]
        mixer = [*projections, "self_attn.q_norm.weight", "self_attn.k_norm.weight"] if attends else recurrent
        shared = [f"mlp.shared_expert.{each}_proj.weight" for each in ("gate", "up", "down")]
        own = [f"mlp.experts.{e}.{each}_proj.weight" for e in range(experts or 0) for each in ("gate", "up", "down")]
        stacked = [] if experts else ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        moe = ["mlp.gate.weight", "mlp.shared_expert_gate.weight", *shared, *own, *stacked]
        found += [f"{layer}{each}" for each in [*mixer, *moe]]
    return found


@pytest.mark.parametrize("experts", [None, 6])
@pytest.mark.parametrize("prefix", ["model.language_model.", "model."])
def test_published_names(experts: int | None, prefix: str) -> None:
    values = config("qwen3_5_moe_text", rope_parameters=MROPE)
    spec, rules, read = resolve(values)
    tensors = [*names(experts, (False, True, False), prefix), *LEFT_OUT]
    planned = plan(tensors, rules, skeleton(spec, torch.bfloat16).destinations())
    assert planned.unclaimed == planned.unfilled == planned.twice_filled == []
    assert sorted(planned.dropped) == sorted(LEFT_OUT)
    assert len(planned.reasons) == 2
    assert set(read.unread) <= {"intermediate_size"}  # which only our own base of rows has
    assert spec.layers[1].attention.rope.dim == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_output_gate": False}, "attention has a gate"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', supported are silu, swish"),
        ({"linear_num_value_heads": 5}, "linear_num_value_heads 5 is no multiple of 2"),
        ({"layer_types": ["mamba"] * 3}, "layer_types has mamba; linear_attention and full_attention work"),
        ({"layer_types": ["full_attention"]}, "one type for each of the 3 layers"),
        ({"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype is 'bfloat16', supported are float32"),
        ({"mlp_only_layers": [1]}, "in this family all have experts"),
        ({"linear_conv_kernel_dim": 65}, "from 1 to 64"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(config("qwen3_5_moe_text", **changes))


def test_pieces_that_alternate() -> None:
    """There and back: of two heads each q (1), v (2), z (2) in turn, in rows of one value."""
    made, stored = parse("2 x 1 2 2 -> parts"), torch.tensor([1, 3, 4, 7, 8, 2, 5, 6, 9, 10])[:, None]
    rows = torch.empty_like(stored)
    made.copy(stored, rows)
    assert rows.flatten().tolist() == list(range(1, 11))
    assert torch.equal(made.restore(rows), stored)
    assert made.shape((10, 3)) == (10, 3)
    assert f"{made.stored} -> {made.rows}" == "2 x 1 2 2 -> parts"
