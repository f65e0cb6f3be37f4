"""Llama, except: most layers have a short convolution between two gates in place of attention; the others normalise
each head of q and k; norms and matrices have other names. The head is the embedding.

LFM2 and LFM2.5, 350M to 2.6B (Liquid AI, 2025). The width of the feed-forward is not the one stated: two thirds of it,
times a factor, rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from minillm.config import MAX_SIZE, Config, positive_integer
from minillm.families.shared import common, rotary
from minillm.families.shared.hybrid import MAX_KERNEL
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, GatedConv, GatedMLP, Mixer, MoE, Norm, QKNorm

FIXED = {"conv_bias": False}  # as in all published models
# How a model is begun, and other names of sizes, which nothing depends on.
LEFT_OVER = ("block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu",
             "block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads",
             "use_pos_enc")  # fmt: skip
SHARED = {
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
DEFAULTS = {
    **SHARED,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "block_ff_dim": None,
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "full_attn_idxs": None,
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


def spec(config: Config) -> Decoder:
    listed, layers = config.get("full_attn_idxs"), common.num_layers(config)
    if listed is None:
        listed = list(range(layers))
    if not isinstance(listed, list) or any(type(each) is not int or not 0 <= each < layers for each in listed):
        raise ValueError(f"config.json: full_attn_idxs is {shown(listed)}, expected numbers of layers below {layers}")
    mlp = GatedMLP(_width(config))
    return decoder(config, [mlp] * layers, ["full_attention" if i in listed else "conv" for i in range(layers)])


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


def _width(config: Config) -> int:
    """Of the feed-forward."""
    width = config.size("intermediate_size" if config.get("block_ff_dim") is None else "block_ff_dim")
    if not config.flag("block_auto_adjust_ff_dim"):
        return width
    width, factor = int(2 * width / 3), config.optional_number("block_ffn_dim_multiplier")
    multiple = 1 if factor is None else config.size("block_multiple_of")
    made = -(-int((factor or 1) * width) // multiple) * multiple
    return positive_integer("block_ff_dim times block_ffn_dim_multiplier", made, MAX_SIZE)
