"""Llama, except: LayerNorms without bias; q, k and v lie in one tensor and are clamped to `clip_qkv`; a mixture of
experts (16, top 4) in place of each MLP; keys of the config have other names, most inside `attn_config` and
`ffn_config`. Experts lie one below the other: gates in `w1`, ups in `v1`, downs in `w2` the other way round.

DBRX Base and Instruct, 132B with 36B active (Databricks, 2024). Rotations have the base of `attn_config`, where
transformers 5.23 does not look for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import HARMLESS, Config, same
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, LayerNorm, MoE

# Of each section, what its keys are called elsewhere.
SECTIONS = {
    "attn_config": {"kv_n_heads": "num_key_value_heads"},
    "ffn_config": {
        "ffn_hidden_size": "intermediate_size",
        "moe_num_experts": "num_experts",
        "moe_top_k": "num_experts_per_tok",
    },
}
OF_TRAINING = ("emb_pdrop", "moe_jitter_eps", "moe_loss_weight")
LACKING = ("rms_norm_eps", "attention_bias", "mlp_bias")
DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key not in LACKING},
    **dict.fromkeys(OF_TRAINING),
    "hidden_size": 2048,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 1,
    "clip_qkv": None,
    "num_experts": 4,
    "num_experts_per_tok": 1,
    "moe_normalize_expert_weights": 1.0,
}
LAYER, OURS = "transformer.blocks.{i}.", "layers.{i}."
BEFORE, EXPERTS = f"{LAYER}norm_attn_norm.", f"{LAYER}ffn.experts.mlp."
RULES = {
    "transformer.wte.weight": "embedding.weight",
    "transformer.norm_f.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    f"{BEFORE}norm_1.weight": f"{OURS}attention_norm.weight",
    f"{BEFORE}norm_2.weight": f"{OURS}ffn_norm.weight",
    f"{BEFORE}attn.Wqkv.weight": f"{OURS}attention.qkv.weight",
    f"{BEFORE}attn.out_proj.weight": f"{OURS}attention.out.weight",
    f"{LAYER}ffn.router.layer.weight": f"{OURS}ffn.router.weight",
    f"{EXPERTS}{{e}}.w1": f"{OURS}ffn.experts.gate_up[{{e}}.gate]",  # one by one, as `source.unstacked` gives them
    f"{EXPERTS}{{e}}.v1": f"{OURS}ffn.experts.gate_up[{{e}}.up]",
    f"{EXPERTS}{{e}}.w2": f"{OURS}ffn.experts.down[{{e}}]: f h -> h f",
}
TRANSFORMERS = {"router.layer": "router"}  # what it calls a module in place of the checkpoint


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of one level under their usual names."""
    made = {key: value for key, value in values.items() if key not in SECTIONS}
    for section, names in SECTIONS.items():
        stated = values.get(section) or {}
        if not isinstance(stated, dict):
            raise ValueError(f"config.json: {section} is {shown(stated)}, expected an object or null")
        for key, value in stated.items():
            if key not in HARMLESS:
                name = names.get(key, key)
                same({name: made.get(name), f"{section}.{key}": value})
                made[name] = made.get(name) if value is None else value
    function = made.pop("ffn_act_fn", None) or {"name": "silu"}
    if not isinstance(function, dict) or set(function) != {"name"}:
        raise ValueError(f"config.json: ffn_config.ffn_act_fn is {shown(function)}, expected an object with a name")
    same({"hidden_act": made.get("hidden_act"), "ffn_config.ffn_act_fn.name": function["name"]})
    return {**made, "hidden_act": function["name"]}


def spec(config: Config) -> Decoder:
    config.without_effect(OF_TRAINING)
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope, clip = rotary.rope(config, head_dim), config.optional_number("clip_qkv")
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, clip=clip)
    if (power := config.get("moe_normalize_expert_weights")) not in (None, 1):
        raise ValueError(f"config.json: moe_normalize_expert_weights is {shown(power)}; 1, the sum, and null work")
    expert, router = common.gated_mlp(config, "intermediate_size"), common.router(config, renormalize=power is not None)
    moe, layers = MoE(router, expert.intermediate_size, expert.activation), common.num_layers(config)
    return common.decoder(config, [attention] * layers, [moe] * layers, LayerNorm(1e-5, bias=False))
