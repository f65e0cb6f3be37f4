"""Llama, except: all that Gemma changes; two of three layers are gated linear recurrences (RG-LRU), the third has a
window and rotates half of each head; the MLP is half as wide as its config says; biases; capped logits.

RecurrentGemma 2B, 9B (Google DeepMind, 2024; Botev et al., arXiv:2404.07839).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from minillm.config import Config
from minillm.families import gemma
from minillm.families.recurrent.hybrid import MAX_KERNEL
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, Embedding, GatedMLP, GatedRecurrence, Mixer

DEFAULTS: dict[str, Any] = {
    **{key: value for key, value in gemma.DEFAULTS.items() if key not in ("hidden_act", "use_bidirectional_attention")},
    "hidden_size": 2560,
    "intermediate_size": 7680,
    "num_hidden_layers": 26,
    "num_attention_heads": 10,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "lru_width": None,
    "attention_window_size": 2048,
    "conv1d_width": 4,
    "logits_soft_cap": 30.0,
    "block_types": ["recurrent", "recurrent", "attention"],
    "partial_rotary_factor": 0.5,
}
LAYER, MIXER = "model.layers.{i}.", "layers.{i}.attention."
TEMPORAL, LRU = f"{LAYER}temporal_block.", f"{LAYER}temporal_block.rg_lru."
BIASED = {f"{TEMPORAL}o_proj": f"{MIXER}out", f"{TEMPORAL}linear_out": f"{MIXER}output",
          f"{LAYER}mlp_block.down_proj": "layers.{i}.ffn.down"}  # fmt: skip
RULES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.final_norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    f"{LAYER}temporal_pre_norm.weight": "layers.{i}.attention_norm.weight",
    f"{LAYER}channel_pre_norm.weight": "layers.{i}.ffn_norm.weight",
    **common.weights_and_biases(BIASED),
    **{f"{LAYER}mlp_block.{part}_proj.{kind}": f"layers.{{i}}.ffn.gate_up.{kind}[{part}]"
       for part in ("gate", "up") for kind in ("weight", "bias")},
    **{f"{TEMPORAL}{part}_proj.{kind}": f"{MIXER}qkv.{kind}[{part}]" for part in "qkv" for kind in ("weight", "bias")},
    **{f"{TEMPORAL}linear_{part}.{kind}": f"{MIXER}yx.{kind}[{part}]" for part in "yx" for kind in ("weight", "bias")},
    f"{TEMPORAL}conv_1d.weight": f"{MIXER}conv: c 1 j -> c j",
    f"{TEMPORAL}conv_1d.bias": f"{MIXER}conv_bias",
    f"{LRU}recurrent_param": f"{MIXER}decay",
    f"{LRU}input_gate_weight": f"{MIXER}opens: h i o -> (h o) i, h={{heads}}",
    f"{LRU}recurrent_gate_weight": f"{MIXER}keeps: h i o -> (h o) i, h={{heads}}",
    f"{LRU}input_gate_bias": f"{MIXER}opens_bias: h o -> (h o), h={{heads}}",
    f"{LRU}recurrent_gate_bias": f"{MIXER}keeps_bias: h o -> (h o), h={{heads}}",
}  # fmt: skip


def rules(config: Config) -> dict[str, str]:
    return {name: to.replace("{heads}", str(config.size("num_attention_heads"))) for name, to in RULES.items()}


def spec(config: Config) -> Decoder:
    heads, kv_heads, head_dim = common.heads(config)
    config.without_effect(("w_init_variance_scale", "final_w_init_variance_scale"))  # how training begins
    bias, window = config.flag("attention_bias"), config.size("attention_window_size")
    rope = rotary.rope(config, head_dim, partial=config.get("partial_rotary_factor"))
    attention = GQA(heads, kv_heads, head_dim, rope, window, qkv_bias=bias, out_bias=True)
    width = config.optional_size("lru_width") or config.size("hidden_size")
    act = config.choice("hidden_activation", common.ACTIVATIONS)
    if width % heads:
        raise ValueError(f"config.json: lru_width {width} is no multiple of {heads} heads")
    recurrent = GatedRecurrence(heads, width // heads, config.size("conv1d_width", MAX_KERNEL), act)
    kinds = config.get("block_types")
    if not isinstance(kinds, list) or not kinds or any(each not in ("recurrent", "attention") for each in kinds):
        raise ValueError(f"config.json: block_types is {shown(kinds)}, expected recurrent and attention")
    layers = common.num_layers(config)
    mixers: list[Mixer] = [attention if kinds[i % len(kinds)] == "attention" else recurrent for i in range(layers)]
    mlp = GatedMLP(config.size("intermediate_size") // 2, act, bias=True)
    made = common.decoder(config, mixers, [mlp] * layers, gemma.norm(config))
    cap = config.optional_number("logits_soft_cap")
    return replace(made, embedding=Embedding(_in_bf16(made.hidden_size**0.5)), logit_softcap=cap)


def _in_bf16(value: float) -> float:
    """Rounded to eight digits, as the factor is whatever the model's type."""
    digits, exponent = math.frexp(value)
    return math.ldexp(round(digits * 256), exponent - 8)
