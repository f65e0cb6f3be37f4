"""Llama, except: a head's v has fewer values than its q and k, and a factor; a third of q and k turns; layers with a
window have twice as many kv heads, a rotary embedding of their own and sinks; after one dense layer all have
DeepSeek-V3's mixtures, without a shared expert.

MiMo-V2-Flash, 309B with 15B active (Xiaomi, 2025), published in FP8. `sliding_window_size` does not count the position
itself, `sliding_window` does; both are published, and the first counts. What predicts further tokens is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config, same
from minillm.families import llama
from minillm.families.shared import common, experts, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, KV, Decoder, MoE

FIXED = {"n_shared_experts": None, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
         "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False}  # fmt: skip
ROPE = {
    "full_attention": {"rope_theta": 5000000.0, "partial_rotary_factor": 0.334},
    "sliding_attention": {"rope_theta": 10000.0, "partial_rotary_factor": 0.334},
}
DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key not in ("mlp_bias", "rope_theta", "rope_scaling")},
    **FIXED,
    "vocab_size": 152576,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 192,
    "v_head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": ROPE,
    "sliding_window": 129,
    "layer_types": None,
    "mlp_layer_types": None,
    "attention_value_scale": 0.707,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "attention_chunk_size": None,  # the window once more
}
RULES = {
    **common.DENSE_RULES,
    **common.MOE_RULES,
    "model.layers.{i}.self_attn.attention_sink_bias": "layers.{i}.attention.sinks",
    "model.layers.{i}.mlp.gate.e_score_correction_bias": "layers.{i}.ffn.router.bias",
    "model.mtp.*": common.AHEAD,
}
TRANSFORMERS = {"self_attn.attention_sink_bias": "self_attn.sinks"}
LISTED = {"hybrid_layer_pattern": ("layer_types", ["full_attention", "sliding_attention"]),
          "moe_layer_freq": ("mlp_layer_types", ["dense", "sparse"])}  # fmt: skip
OF_WINDOWS = {"num_attention_heads": 1, "num_key_value_heads": 2, "head_dim": 1, "v_head_dim": 1}


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    """What published files say in transformers' words."""
    made = {key: value for key, value in values.items() if key != "routed_scaling_factor" or value is not None}
    made |= {LISTED[key][0]: listed(key, made.pop(key)) for key in LISTED if made.get(key) is not None}
    made |= {"rms_norm_eps": made.pop("layernorm_epsilon")} if "layernorm_epsilon" in made else {}
    made |= {"sliding_window": made.pop("sliding_window_size") + 1} if "sliding_window_size" in made else {}
    if "swa_rope_theta" in made:
        part, thetas = made.pop("partial_rotary_factor", 0.334), (made.pop("rope_theta"), made.pop("swa_rope_theta"))
        each = [{"rope_theta": theta, "partial_rotary_factor": part} for theta in thetas]
        made["rope_parameters"] = dict(zip(ROPE, each, strict=True))
    for key, times in OF_WINDOWS.items():
        same({f"swa_{key}": made.pop(f"swa_{key}", None), f"{times} x {key}": times * made.get(key, DEFAULTS[key])})
    return made


def listed(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or any(each not in (0, 1) for each in value):
        raise ValueError(f"config.json: {key} is {shown(value)}, expected a list of 0 and 1")
    return [LISTED[key][1][each] for each in value]


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(["attention_chunk_size"])
    layers, dense = common.num_layers(config), common.gated_mlp(config, "intermediate_size")
    num_heads, kv_heads, head_dim = common.heads(config)
    spaced = [i > 0 and (i + 1) % 6 != 0 for i in range(layers)]
    windows, ropes = common.typed_windows(config, common.window(config), spaced), rotary.by_kind(config, head_dim, ROPE)
    if any(windows) and num_heads % (2 * kv_heads):
        raise ValueError(f"config.json: {num_heads} attention heads are no multiple of {2 * kv_heads} kv heads")
    bias, scale = config.flag("attention_bias"), config.optional_number("attention_value_scale")
    kv = KV(v_dim=config.size("v_head_dim"), v_scale=1.0 if scale is None else scale)
    full = GQA(num_heads, kv_heads, head_dim, ropes["full_attention"], qkv_bias=bias, kv=kv)
    local = GQA(
        num_heads, 2 * kv_heads, head_dim, ropes["sliding_attention"], common.window(config), bias, kv=kv,
        weakened="sinks",
    )  # fmt: skip
    moe = MoE(experts.grouped(config, "n_routed_experts"), config.size("moe_intermediate_size"), dense.activation)
    ffn = common.typed_layers(config, moe, dense, [i > 0 for i in range(layers)])
    return common.decoder(config, [local if each else full for each in windows], ffn)
