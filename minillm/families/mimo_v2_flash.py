"""Llama, except: a head's v has fewer values than its q and k, and a factor; a third of q and k is rotated; layers with
a window have twice as many kv heads, a rotary embedding of their own and sinks; after one dense layer come
DeepSeek-V3's mixtures, without a shared expert.

MiMo-V2-Flash, 309B with 15B active (Xiaomi, 2025), published in FP8. `sliding_window_size` does not count the position
itself, `sliding_window` does; both are published, and the first counts. Multi-token prediction layers are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minillm.config import Config, same
from minillm.families import llama
from minillm.families.shared import common, experts, rotary
from minillm.spec import GQA, KV, Decoder, MoE

FIXED = {"n_shared_experts": None, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
         "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False}  # fmt: skip
THETAS = {"full_attention": 5000000.0, "sliding_attention": 10000.0}
ROPE = {kind: {"rope_theta": theta, "partial_rotary_factor": 0.334} for kind, theta in THETAS.items()}
DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key not in ("mlp_bias", "rope_theta", "rope_scaling")},
    **FIXED,
    **experts.GROUPED,
    "vocab_size": 152576, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 48,
    "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 192, "v_head_dim": 128,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_parameters": ROPE, "sliding_window": 129,
    **dict.fromkeys(("layer_types", "mlp_layer_types")), "attention_value_scale": 0.707,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "attention_chunk_size": None,  # the window once more
}  # fmt: skip
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
OF_KINDS = ("rope_theta", "swa_rope_theta")
OF_WINDOWS = {"num_attention_heads": 1, "num_key_value_heads": 2, "head_dim": 1, "v_head_dim": 1}


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    """What published files say in transformers' words."""
    made = {key: value for key, value in values.items() if key != "routed_scaling_factor" or value is not None}
    for name, (key, named) in LISTED.items():
        made |= {key: common.words(name, made.pop(name), named)} if name in made else {}
    made |= {"rms_norm_eps": made.pop("layernorm_epsilon")} if "layernorm_epsilon" in made else {}
    if type(reach := made.pop("sliding_window_size", None)) is int:
        made["sliding_window"] = reach + 1
    if "swa_rope_theta" in made:
        part, thetas = (
            made.pop("partial_rotary_factor", 0.334),
            (made.pop("rope_theta", None), made.pop("swa_rope_theta")),
        )
        made["rope_parameters"] = {kind: {"rope_theta": theta, "partial_rotary_factor": part}
                                   for kind, theta in zip(ROPE, thetas, strict=True)}  # fmt: skip
    for key, times in OF_WINDOWS.items():
        usual = made.get(key, DEFAULTS[key])
        usual = times * usual if type(usual) is int else None
        same({f"swa_{key}": made.pop(f"swa_{key}", None), f"{times} x {key}": usual})
    return made


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(["attention_chunk_size"])
    layers, dense = common.num_layers(config), common.gated_mlp(config, "intermediate_size")
    num_heads, kv_heads, head_dim = common.heads(config)
    spaced = [i > 0 and (i + 1) % 6 != 0 for i in range(layers)]
    windows, ropes = (
        common.typed_windows(config, common.window(config), spaced),
        rotary.by_kind(config, head_dim, THETAS, 0.334),
    )
    if any(windows) and num_heads % (2 * kv_heads):
        raise ValueError(f"config.json: {num_heads} attention heads are no multiple of {2 * kv_heads} kv heads")
    bias, scale = config.flag("attention_bias"), config.optional_number("attention_value_scale")
    kv = KV(v_dim=config.size("v_head_dim"), v_scale=1.0 if scale is None else scale)
    full = GQA(num_heads, kv_heads, head_dim, ropes["full_attention"], qkv_bias=bias, kv=kv)
    turned, window = ropes["sliding_attention"], common.window(config)
    local = replace(full, num_kv_heads=2 * kv_heads, rope=turned, window=window, weakened="sinks")
    moe = MoE(experts.grouped(config, "n_routed_experts"), config.size("moe_intermediate_size"), dense.activation)
    ffn = common.typed_layers(config, moe, dense, [i > 0 for i in range(layers)])
    return common.decoder(config, [local if each else full for each in windows], ffn)
