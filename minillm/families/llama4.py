"""Llama, except: three of four layers rotate neighbouring pairs, then normalise each head of q and k, without a weight,
and see only their own chunk of the text; the fourth has no rotation, sees everything, and its queries grow with their
position; mixtures give an expert x times a sigmoid of its score, and have a shared expert.

Llama 4 Scout, 109B with 17B active, and Maverick, 400B with 17B active (Meta, 2025), without the image encoder.
Maverick has a mixture in every second layer, and no norm of q and k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minillm.config import MAX_POSITIONS, Config
from minillm.families import llama
from minillm.families.shared import common, experts, rotary, wrapped
from minillm.spec import GQA, Chunk, Decoder, GatedMLP, MoE, Norm, QKNorm, Scores, Temperature

DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key != "mlp_bias"},
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "interleave_moe_layer_step": 1,
    "router_jitter_noise": 0.0,  # of training
    "use_qk_norm": True,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    **dict.fromkeys(("moe_layers", "no_rope_layers", "layer_types")),
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
}
FFN, OURS = "model.layers.{i}.feed_forward.", "layers.{i}.ffn."


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    """With the words of the first files: an empty list says nothing, and any number for `attn_temperature_tuning` is
    true."""
    made = wrapped.inner(values)
    made |= {"no_rope_layers": None} if made.get("no_rope_layers") == [] else {}
    stated = made.get("attn_temperature_tuning")
    return {**made, "attn_temperature_tuning": bool(stated)} if type(stated) is int else made


def rules(config: Config) -> dict[str, str]:
    text = {pattern.replace(".mlp.", ".feed_forward."): to for pattern, to in common.DENSE_RULES.items()}
    turned = f": e f h -> (e h) f, e={config.size('num_local_experts', common.MAX_EXPERTS)}"
    mixture = {f"{FFN}experts.gate_up_proj": f"{OURS}experts.gate_up{turned}",
               f"{FFN}experts.down_proj": f"{OURS}experts.down{turned}",
               f"{FFN}router.weight": f"{OURS}router.weight"}  # fmt: skip
    text |= {**common.shared_expert(f"{FFN}shared_expert."), **mixture}
    return wrapped.rules(text, ("vision_model", "multi_modal_projector"))


def spec(config: Config) -> Decoder:
    layers, every = common.num_layers(config), config.size("no_rope_layer_interval")
    turns = common.flags(config, "no_rope_layers", [(i + 1) % every != 0 for i in range(layers)])
    size = config.size("attention_chunk_size", MAX_POSITIONS) if config.get("attention_chunk_size") else None
    chunk = None if size is None else Chunk(size)
    windows = common.typed_windows(config, chunk, turns, "chunked_attention")
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, rope = config.flag("attention_bias"), replace(rotary.rope(config, head_dim), layout="interleaved")
    plain = Norm(config.number("rms_norm_eps"), affine=False)
    normed = QKNorm(plain, turned=True) if config.flag("use_qk_norm") else None
    growth = Temperature(config.number("attn_scale"), config.size("floor_scale", MAX_POSITIONS), shift=1)
    warm = Scores(temperature=growth if config.flag("attn_temperature_tuning") else None)
    turned = GQA(num_heads, num_kv_heads, head_dim, rope, None, bias, bias, normed)
    still = GQA(num_heads, num_kv_heads, head_dim, None, None, bias, bias, scores=warm)
    mixers = [replace(turned if each else still, window=window) for each, window in zip(turns, windows, strict=True)]
    mlp, sparse = GatedMLP(config.size("intermediate_size_mlp")), experts.sparse(config)
    expert = common.gated_mlp(config, "intermediate_size")
    router = common.router(config, "num_local_experts", score="sigmoid")
    moe = MoE(router, expert.intermediate_size, expert.activation, expert, weighs_input=True)
    ffn = [moe if i in sparse else replace(mlp, activation=expert.activation) for i in range(layers)]
    config.without_effect(["router_jitter_noise"])
    return common.decoder(config, mixers, ffn)
