"""Families of `further_rows.py`: what published files say in words of their own, names with adapters beside them, heads
of rows of length 1, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from minillm.config import read
from minillm.families import baichuan, resolve
from minillm.spec import ChannelDelta, Decoder
from minillm.weights import checkpoint
from minillm.weights.checkpoint import Checkpoint
from tests.helpers import tiny
from tests.helpers.further_rows import BLOCKS, FURTHER, WHOLE
from tests.helpers.rows import BASE


def spec(family: str, row: str = "", **values: Any) -> Decoder:
    return resolve({**BASE, **FURTHER.get(row or family, ("", {}))[1], "model_type": family, **values})[0]


@torch.no_grad()
def test_rows_of_a_head_at_length_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Baichuan 2, which is known by the size of its vocabulary."""
    monkeypatch.setattr(baichuan, "NORMED_HEAD", BASE["vocab_size"])
    theirs = tiny.save(tmp_path, *tiny.ROWS["baichuan"])
    theirs.lm_head.weight.copy_(torch.nn.functional.normalize(theirs.lm_head.weight))
    tokens = tiny.tokens(BASE["vocab_size"], 1, 20)
    assert (minillm.load(tmp_path).model(tokens) - tiny.logits(theirs, tokens)).abs().max() <= 2e-5


@torch.no_grad()
def test_adapters_for_pictures_and_sounds_are_left_out(tmp_path: Path) -> None:
    """Phi-4-multimodal as it was published: the matrices of its text model have them beside them."""
    theirs = tiny.save(tmp_path, *tiny.ROWS["phi4_multimodal"])
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [each for each in tensors if each.startswith("model.layers.") and "_proj.weight" in each]:
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.base_layer.weight"] = tensors.pop(name)
        for kind in ("speech", "vision"):
            tensors |= {f"{stem}.lora_{side}.{kind}.weight": torch.ones(2, 2) for side in "AB"}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tiny.edit_config(tmp_path, model_type="phi4mm", speech_lora={"r": 2}, vision_lora={"r": 2})
    tokens = tiny.tokens(BASE["vocab_size"], 1, 20)
    assert (minillm.load(tmp_path).model(tokens) - tiny.logits(theirs, tokens)).abs().max() <= 2e-5


def test_lists_of_layers_that_go_on_for_those_behind_the_last() -> None:
    """Step-3.5-Flash as it was published."""
    row = {key: value for key, value in FURTHER["step3p7"][1].items() if key != "rope_parameters"}
    kinds, more = row.pop("layer_types"), row.pop("num_sliding_attention_heads")
    scaling = {"rope_type": "linear", "factor": 3.0}
    plain = {
        "full_attention": {**scaling, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 90.0, "partial_rotary_factor": 1.0},
    }
    published = {
        **row,
        "num_attention_groups": BASE["num_key_value_heads"],
        "moe_num_experts": row["n_routed_experts"],
        "moe_top_k": row["num_experts_per_tok"],
        "moe_layers_enum": "1,3, 4",
        "share_expert_dims": row["share_expert_dim"],
        "layer_types": [*kinds, "full_attention"],
        "attention_other_setting": {"attention_type": "sliding_attention", "num_attention_heads": more},
        "swiglu_limits": [*row["swiglu_limits"], 0.0],
        "swiglu_limits_shared": [*row["swiglu_limits_shared"], 0.0],
        "rope_theta": [500.0, 90.0, 90.0, 90.0, 500.0, 500.0],
        "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0, 0.5, 0.5],
        "rope_scaling": scaling,
        "num_nextn_predict_layers": 1,
    }
    for key in ("n_routed_experts", "num_experts_per_tok", "mlp_layer_types", "share_expert_dim"):
        del published[key]
    words = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
    found, _, config = resolve({**words, **published, "model_type": "step3p5"})
    assert found == spec("step3p7", rope_parameters=plain)
    assert config.unread == []


def test_lists_that_count_from_one() -> None:
    """Kimi-Linear as it was published."""
    row = dict(FURTHER["kimi_linear"][1])
    section = {"head_dim": row.pop("linear_head_dim"), "num_heads": row.pop("linear_num_heads"),
               "short_conv_kernel_size": 4, "full_attn_layers": [2], "kda_layers": [1, 3, 4]}  # fmt: skip
    del row["layer_types"]
    published = {**BASE, **row, "model_type": "kimi_linear", "linear_attn_config": section, "head_dim": 72}
    found, _, config = resolve({**published, "rope_theta": 10000.0, "rope_scaling": None, "mla_use_nope": True})
    assert found == spec("kimi_linear")
    assert config.unread == []


def test_how_fast_may_be_forgotten() -> None:
    """GLM-5.3-Flash has the bound that is stated, here -1.5, or one of its own, unless it says that it goes without."""
    said = {"nothing": {}, "null": {"gate_lower_bound": None}, "unsafe": {"gate_lower_bound": None, "safe_gate": False}}
    found = {name: spec("glm5_next", linear_attn_config=values).layers[0].attention for name, values in said.items()}
    bounds = {name: each.bound for name, each in found.items() if isinstance(each, ChannelDelta)}
    assert bounds == {"nothing": -1.5, "null": -5.0, "unsafe": None}


def test_width_of_heads_that_forget() -> None:
    """Ling says it as `head_dim`, transformers writes another number there and this one beside it."""
    for values in ({"head_dim": 7}, {"head_dim": 8, "linear_head_dim": 7}):
        layer = spec("bailing_hybrid", **values).layers[0].attention
        assert isinstance(layer, ChannelDelta)
        assert layer.head_dim == 7


def block(**attention: Any) -> list[dict[str, Any]]:
    return [{**BLOCKS[0], "attention": {**WHOLE, **attention}}, *BLOCKS[1:]]


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a linear map": ("nemotron-nas", {"block_configs": block(replace_with_linear=True)}, "replace_with_linear of"),
    "a window": (
        "nemotron-nas",
        {"block_configs": block(window_length=8)},
        "window_length of attention of layer 0 is 8",
    ),
    "another kind of block": (
        "nemotron-nas",
        {"block_configs": block(moe={"experts": 4})},
        "moe of attention of layer",
    ),
    "odd groups": ("nemotron-nas", {"block_configs": block(n_heads_in_group=4)}, "n_heads_in_group is 4 in layer 0"),
    "too few layers": ("nemotron-nas", {"block_configs": BLOCKS[:2]}, "expected one object for each layer"),
    "no layer": ("nemotron-nas", {"block_configs": [*BLOCKS[:2], 3]}, "attention of layer 2, expected an object"),
    "nothing at all": (
        "nemotron-nas",
        {"block_configs": [*BLOCKS[:2], {"attention": {"no_op": True}, "ffn": {"no_op": True}}]},
        "layer 2 has neither attention nor an MLP",
    ),
    "too few speeds": ("granite_swa", {"layer_rope_theta": [0]}, "layer_rope_theta is [0], expected a number for each"),
    "heads of windows": (
        "step3p7",
        {"num_sliding_attention_heads": 7},
        "7 heads of layers with a window are no multiple",
    ),
    "layers of their own": (
        "step3p7",
        {"per_layer_config": {"1": {"num_attention_heads": 4}}},
        "per_layer_config is {'1': {'num_attention_heads': 4}}, and only num_attention_heads",
    ),
    "windows of their own": ("step3p7", {"per_layer_config": {"1": {"sliding_window": 3}}}, "per_layer_config is"),
    "a larger Flash": ("glm5_next", {"linear_attn_config": {"decay_rank": 8}}, "linear_attn_config has 'decay_rank'"),
    "too few limits": ("step3p7", {"swiglu_limits": [1.0]}, "swiglu_limits is [1.0], expected a number for each layer"),
    "kinds of layers": ("kimi_linear", {"layer_types": ["conv"] * 4}, "layer_types must list full_attention or linear"),
    "a larger Kimi": ("kimi_linear", {"linear_attn_config": {"gate_lower_bound": -5.0}}, "has gate_lower_bound, which"),
    "another activation": ("kimi_linear", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "positions": ("kimi_linear", {"mla_use_nope": False}, "mla_use_nope is False; this family's code knows True only"),
    "no bound": ("bailing_hybrid", {"kda_lower_bound": 1.0}, "kda_lower_bound is 1.0, expected a number from -1000"),
    "two words": ("bailing_hybrid", {"n_shared_experts": 1}, "n_shared_experts is 1; they mean the same"),
    "a long convolution": ("bailing_hybrid", {"short_conv_kernel_size": 65}, "over 65 positions, at most 64 work"),
    "how to add": ("cohere2_moe", {"shared_expert_combination_strategy": "max"}, "supported are average, sum"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name: str) -> None:
    family, values, message = REFUSALS[name]
    with pytest.raises(ValueError, match=r"^config.json: [^\n]*$") as caught:
        spec(family, **values)
    assert message in str(caught.value)


def test_stacks_of_gate_and_up_are_read_expert_by_expert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save(tmp_path, *tiny.ROWS["step3p7"])
    stored = load_file(tmp_path / "model.safetensors")
    stack = stored["model.layers.3.moe.gate_proj.weight"]
    assert stack.shape == (6, 20, 48)
    model = minillm.load(tmp_path).model
    assert torch.equal(model.layers[3].ffn.experts.gate_up[:, :20], stack)
    planned = Checkpoint(tmp_path).plan(resolve(read(tmp_path))[1], model.destinations())
    assert planned.unclaimed == planned.unfilled == []
    monkeypatch.setattr(checkpoint, "MOST_MATRICES", 20)
    with pytest.raises(ValueError, match="more than 20 tensors, those in stacks counted each"):
        Checkpoint(tmp_path)
    stored["model.layers.3.moe.2.gate_proj.weight"] = stack[2].clone()
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"moe\.2\.gate_proj\.weight' is there twice, in a stack and by itself"):
        Checkpoint(tmp_path)
