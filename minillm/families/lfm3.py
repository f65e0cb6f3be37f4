"""Llama, except: all that LFM2 changes, with convolutions over 7 positions; every other attention layer has a window
and a smaller rotary base; a gate on each head, and a norm after attention, convolution and feed-forward too.

LFM3, 1.7B (Liquid AI, 2026). In layers without a window only the first half of the pairs is rotated.
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config
from minillm.families.recurrent import convolved
from minillm.families.recurrent.hybrid import MAX_KERNEL
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, Gate, GatedConv, GatedMLP, Mixer, Norm, QKNorm

FULL, SLIDING, CONV = "full_attention", "sliding_attention", "conv"
LOCAL_THETA = 10000.0
ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": LOCAL_THETA},
    FULL: {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.5},
}
NOT_HERE = {*convolved.LEFT_OVER, "tie_embedding"}
DEFAULTS = {
    **{key: value for key, value in convolved.DEFAULTS.items() if key not in NOT_HERE},
    "vocab_size": 128000,
    "hidden_size": 2048,
    "intermediate_size": 7680,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "rope_parameters": ROPE,
    "sliding_window": 256,
    "conv_L_cache": 7,
    "use_sandwich_norm": True,
    "use_attention_gate": True,
    "attention_bias": False,
}
LAYER, OURS = "model.layers.{i}.", "layers.{i}."
RULES = {
    **convolved.RULES,
    **{name: target for name, target in common.DENSE_RULES.items() if ".self_attn." in name},
    **common.QK_NORM_RULES,
    f"{LAYER}self_attn.gate_proj.weight": f"{OURS}attention.gate.weight",
    f"{LAYER}post_operator_norm.weight": f"{OURS}post_attention_norm.weight",
    f"{LAYER}post_ffn_norm.weight": f"{OURS}post_ffn_norm.weight",
}
# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = {"self_attn.gate_proj.": "self_attn.g_proj."}


def default(layer: int) -> str:
    """The kind of a layer, where the config lists none."""
    if layer % 4 == 2:
        return FULL
    return SLIDING if layer % 4 == 0 and layer else CONV


def spec(config: Config) -> Decoder:
    common.only(config, convolved.FIXED)
    layers, bias = common.num_layers(config), config.flag("attention_bias")
    kinds: Any = config.get("layer_types") or [default(i) for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (FULL, SLIDING, CONV) for kind in kinds):
        raise ValueError(f"config.json: layer_types must list {FULL}, {SLIDING} or {CONV} for each of {layers} layers")
    window, norm = common.window(config), Norm(config.number("norm_eps"))
    if window is None and SLIDING in kinds:
        raise ValueError(f"config.json: layer_types has {SLIDING}, but sliding_window is off")
    num_heads, num_kv_heads, head_dim = common.heads(config)
    gate = Gate(width="head") if config.flag("use_attention_gate") else None
    sizes = (None, window)
    ropes = rotary.by_window(config, head_dim, sizes, LOCAL_THETA)
    known: dict[str, Mixer] = {
        kind: GQA(num_heads, num_kv_heads, head_dim, rope, size, bias, bias, QKNorm(norm), weakened=gate)
        for kind, rope, size in zip((FULL, SLIDING), ropes, sizes, strict=True)
    }
    known[CONV] = GatedConv(config.size("hidden_size"), config.size("conv_L_cache", MAX_KERNEL))
    ffn = GatedMLP(config.size("intermediate_size"))
    made = common.decoder(config, [known[kind] for kind in kinds], [ffn] * layers, norm)
    behind = norm if config.flag("use_sandwich_norm") else None
    return common.every_layer(made, post_attention_norm=behind, post_ffn_norm=behind)
