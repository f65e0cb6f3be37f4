"""Llama, except: three of four layers are recurrent (Gated DeltaNet), with norms where Llama has them, and beta up to
2; the fourth is one of OLMo 3, without positions as published, or without a window.

Olmo-Hybrid-7B (Allen Institute for AI, 2026). What x is multiplied with on its way into a recurrent layer, and its
convolutions, lie in a tensor each.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.recurrent import hybrid
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, GatedDeltaNet, Layer, Norm, QKNorm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 100352,
    "hidden_size": 3840,
    "num_attention_heads": 30,
    "max_position_embeddings": 65536,
    "layer_types": None,
    **dict.fromkeys(hybrid.SIZES),
    "linear_conv_kernel_dim": 4,
    "linear_allow_neg_eigval": True,
}
# How a model is begun, which nothing depends on once it is trained.
BEGUN = ("linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max", "linear_dt_init_floor")
LAYER, MIXER = hybrid.LAYER, hybrid.MIXER
RULES = {
    **common.DENSE_RULES,
    **common.QK_NORM_RULES,
    **hybrid.RULES,
    **{f"{LAYER}{part}_proj.weight": f"{MIXER}qkvz.weight[{to}]" for part, to in zip("qkvg", "qkvz", strict=True)},
    **{f"{LAYER}{part}_proj.weight": f"{MIXER}ba.weight[{part}]" for part in "ba"},
    **{f"{LAYER}{part}_conv1d.weight": f"{MIXER}conv.weight[{part}]: c 1 j -> c j" for part in "qkv"},
    f"{LAYER}o_norm.weight": f"{MIXER}norm",
    f"{LAYER}o_proj.weight": f"{MIXER}output.weight",
    "model.layers.{i}.attention_layer_norm.weight": "layers.{i}.attention_norm.weight",
    "model.layers.{i}.feedforward_layer_norm.weight": "layers.{i}.ffn_norm.weight",
    # Of layers with attention, whose norms stand behind.
    "model.layers.{i}.post_attention_layernorm.weight": "layers.{i}.post_attention_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "layers.{i}.post_ffn_norm.weight",
}
# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = {"attention_layer_norm": "input_layernorm", "feedforward_layer_norm": "post_attention_layernorm"}
EPS = 1e-5  # of the norm inside a recurrent layer, whatever the config says of others


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    config.without_effect(BEGUN)
    values = config.rope()
    rope = rotary.rope(config, head_dim, values) if values.get("rope_theta") is not None else None
    bias, norm = config.flag("attention_bias"), Norm(config.number("rms_norm_eps"), cast="after_weight")
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, None, bias, bias, QKNorm(norm, "all"))
    layers = common.num_layers(config)
    full = [i % 4 == 3 or i == layers - 1 < 3 for i in range(layers)]
    mixers = hybrid.mixers(config, attention, _delta_net(config), full)
    mlp = common.gated_mlp(config, "intermediate_size")
    made = common.decoder(config, mixers, [mlp] * len(mixers), norm)
    return replace(made, layers=tuple(_behind(layer, norm) for layer in made.layers))


def _behind(layer: Layer, norm: Norm) -> Layer:
    """Of attention the norms stand behind."""
    if isinstance(layer.attention, GatedDeltaNet):
        return layer
    return replace(layer, attention_norm=None, ffn_norm=None, post_attention_norm=norm, post_ffn_norm=norm)


def _delta_net(config: Config) -> GatedDeltaNet:
    """With what follows from other sizes where the config does not say it."""
    k_heads, v_heads, k_dim, v_dim = (config.optional_size(key) for key in hybrid.SIZES)
    k_heads, v_heads = (each or config.size("num_attention_heads") for each in (k_heads, v_heads))
    k_dim = k_dim or int(0.75 * config.size("hidden_size") / k_heads)
    factor = 2.0 if config.flag("linear_allow_neg_eigval") else 1.0
    return hybrid.delta_net(config, (k_heads, v_heads, k_dim, v_dim or 2 * k_dim), EPS, factor)
