"""Families of `further_rows.py`: what published files say in words of their own, names with adapters beside them, heads
of rows of length 1, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from minillm import merge
from minillm.adapters.attach import attach
from minillm.adapters.config import AdapterConfig
from minillm.config import read
from minillm.families import baichuan, resolve
from minillm.spec import GQA, ChannelDelta, Decoder, LayerNorm, MoE, Rope, Router
from minillm.tune.learner import write_checkpoint
from minillm.weights import checkpoint
from minillm.weights.checkpoint import Checkpoint
from tests.helpers import adapters, tiny
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


def test_sections_of_a_published_config() -> None:
    """DBRX Instruct, with what transformers 4 wrote of each section."""
    published = {
        "d_model": 6144, "n_heads": 48, "n_layers": 40, "max_seq_len": 32768, "vocab_size": 100352,
        "resid_pdrop": 0.0, "emb_pdrop": 0.0, "router_aux_loss_coef": 0.05, "torch_dtype": "bfloat16",
        "attn_config": {"model_type": "", "clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000},
        "ffn_config": {"model_type": "", "ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4,
                       "moe_jitter_eps": 0.01, "moe_loss_weight": 0.05},
    }  # fmt: skip
    found, _, config = resolve({"model_type": "dbrx", **published})
    attention, ffn = found.layers[39].attention, found.layers[39].ffn
    assert attention == GQA(48, 8, 128, Rope(128, 500000.0), clip=8.0)
    assert ffn == MoE(Router(16, 4, renormalize=True), 10752)
    assert (found.context, found.final_norm, config.unread) == (32768, LayerNorm(1e-5, bias=False), [])


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
    "no section": ("dbrx", {"ffn_config": 3}, "ffn_config is 3, expected an object or null"),
    "heads in two places": (
        "dbrx",
        {"num_key_value_heads": 3},
        "num_key_value_heads is 3 and attn_config.kv_n_heads is 2; they mean the same",
    ),
    "speeds in two places": (  # as transformers writes a published file again, which it turns by its own default
        "dbrx",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "rope_theta is 500.0 and rope_parameters.rope_theta is 10000.0; they mean the same",
    ),
    "an activation with numbers": (
        "dbrx",
        {"ffn_config": {"ffn_act_fn": {"name": "gelu", "approximate": "tanh"}}},
        "expected an object with a name",
    ),
    "another sum": (
        "dbrx",
        {"ffn_config": {"moe_normalize_expert_weights": 2.0}},
        "moe_normalize_expert_weights is 2.0; 1, the sum, and null work",
    ),
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


def test_experts_one_below_the_other_are_read_one_by_one(tmp_path: Path) -> None:
    """As many as the router has rows, which may be those of another config."""
    tiny.save(tmp_path, *tiny.ROWS["dbrx"])
    stored, stem = load_file(tmp_path / "model.safetensors"), "transformer.blocks.1.ffn."
    experts = minillm.load(tmp_path).model.layers[1].ffn.experts
    for kind, rows in (("w1", experts.gate_up[:, :40]), ("v1", experts.gate_up[:, 40:]), ("w2", experts.down.mT)):
        assert torch.equal(rows.flatten(0, 1), stored[f"{stem}experts.mlp.{kind}"])
    for count, message in (
        (3, f"{stem}experts.mlp.0.v1 is [80, 48], the config needs [40, 48]"),
        (7, "no rule claims: transformer.blocks.1.ffn.experts.mlp.v1, transformer.blocks.1.ffn.experts.mlp.w1"),
        (0, "no rule claims: transformer.blocks.1.ffn.experts.mlp.v1, transformer.blocks.1.ffn.experts.mlp.w1"),
    ):
        router = {f"{stem}router.layer.weight": torch.ones(count, 48)}
        save_file({**stored, **router}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        tiny.refused(tmp_path, message)


@torch.no_grad()
@pytest.mark.parametrize(("row", "changed"), [("dbrx", "out_proj"), ("step3p7", "o_proj")])
def test_experts_are_written_as_they_lay(row: str, changed: str, tmp_path: Path) -> None:
    """Merged and converted checkpoints, and one that is fine-tuned, are what transformers reads."""
    theirs = tiny.save(tmp_path / "base", *tiny.ROWS[row])
    llm = minillm.load(tmp_path / "base", dtype="float32", kernels="reference")
    made = attach(llm, AdapterConfig(r=2, target_modules=[changed]))
    adapters.randomise_ours(made)
    made.write(tmp_path / "adapter")
    command = ["--weights", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter"), "--no-compare"]
    for name, dtype in (("merged", "float32"), ("rounded", "bfloat16")):
        assert merge.main([*command, "--output", str(tmp_path / name), "--dtype", dtype]) == 0
    write_checkpoint(tmp_path / "base", minillm.load(tmp_path / "merged").model, tmp_path / "tuned")
    tokens = tiny.tokens(BASE["vocab_size"], 1, 20)
    expected = llm.model(tokens)
    assert (expected - tiny.logits(theirs, tokens)).abs().max() > 0.1
    for name in ("merged", "tuned") if row == "dbrx" else ("merged",):
        assert (tiny.logits(tiny.reference(tmp_path / name), tokens) - expected).abs().max() <= 2e-5
    base, rounded = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "rounded"))
    assert base.keys() == rounded.keys()
    assert all(torch.equal(each, base[name].to(each.dtype)) for name, each in rounded.items() if changed not in name)
