"""What LFM2 and its mixtures share: short convolutions between two gates in place of most attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from minillm.config import Config
from minillm.families.recurrent.hybrid import MAX_KERNEL
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, GatedConv, GatedMLP, Mixer, MoE, Norm, QKNorm

FIXED = {"conv_bias": False}  # as in all published models
# How a model is begun, and other names of sizes, which nothing depends on.
LEFT_OVER = ("block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu",
             "block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads",
             "use_pos_enc")  # fmt: skip
DEFAULTS = {
    **FIXED,
    **dict.fromkeys(LEFT_OVER),
    "vocab_size": 65536,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "tie_word_embeddings": True,
    "tie_embedding": None,
    "conv_L_cache": 3,
    "layer_types": None,
}
LAYER, OURS = "model.layers.{i}.", "layers.{i}."
RULES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.embedding_norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    f"{LAYER}operator_norm.weight": f"{OURS}attention_norm.weight",
    f"{LAYER}ffn_norm.weight": f"{OURS}ffn_norm.weight",
    **{f"{LAYER}self_attn.{part}_proj.weight": f"{OURS}attention.qkv.weight[{part}]" for part in "qkv"},
    **{f"{LAYER}self_attn.{part}_layernorm.weight": f"{OURS}attention.{part}_norm.weight" for part in "qk"},
    f"{LAYER}self_attn.out_proj.weight": f"{OURS}attention.out.weight",
    f"{LAYER}conv.in_proj.weight": f"{OURS}attention.bcu.weight",
    f"{LAYER}conv.conv.weight": f"{OURS}attention.conv: c 1 j -> c j",
    f"{LAYER}conv.out_proj.weight": f"{OURS}attention.output.weight",
    f"{LAYER}feed_forward.w1.weight": f"{OURS}ffn.gate_up.weight[gate]",
    f"{LAYER}feed_forward.w3.weight": f"{OURS}ffn.gate_up.weight[up]",
    f"{LAYER}feed_forward.w2.weight": f"{OURS}ffn.down.weight",
}


def decoder(config: Config, ffn: Sequence[GatedMLP | MoE], default: Sequence[str] | None = None) -> Decoder:
    """With these feed-forwards; layers are of the kinds in `layer_types`, or the `default` ones."""
    common.only(config, FIXED)
    config.without_effect(LEFT_OVER)
    num_heads, num_kv_heads, head_dim = common.heads(config)
    norm = Norm(config.number("norm_eps"))
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim), qk_norm=QKNorm(norm))
    conv = GatedConv(config.size("hidden_size"), config.size("conv_L_cache", MAX_KERNEL))
    kinds: Any = config.get("layer_types") or default
    known: dict[str, Mixer] = {"full_attention": attention, "conv": conv}
    if not isinstance(kinds, list) or len(kinds) != len(ffn) or not all(str(kind) in known for kind in kinds):
        raise ValueError(f"config.json: layer_types must list conv or full_attention for each of the {len(ffn)} layers")
    tied = config.flag("tie_word_embeddings" if config.get("tie_embedding") is None else "tie_embedding")
    return replace(common.decoder(config, [known[kind] for kind in kinds], ffn, norm), tied=tied)
