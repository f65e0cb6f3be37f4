"""Llama, except: all that Gemma changes; a second norm behind attention and MLP, before the residual; scores and logits
capped by c tanh(x / c); scores scaled by query_pre_attn_scalar^-1/2; every other layer, the first one on, has a window.

Gemma 2 2B, 9B, 27B (arXiv:2408.00118).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minillm.config import Config
from minillm.families import gemma
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, QKNorm, Rope, Scores

DEFAULTS = {
    **gemma.DEFAULTS,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
RULES = {
    **gemma.RULES,
    "model.layers.{i}.post_attention_layernorm.weight": "layers.{i}.post_attention_norm.weight",
    "model.layers.{i}.pre_feedforward_layernorm.weight": "layers.{i}.ffn_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "layers.{i}.post_ffn_norm.weight",
}


def spec(config: Config) -> Decoder:
    rope = rotary.rope(config, common.heads(config)[2])
    sliding = [i % 2 == 0 for i in range(common.num_layers(config))]
    windows = common.typed_windows(config, common.window(config), sliding)
    return decoder(config, windows, [rope] * len(windows))


def decoder(
    config: Config, windows: Sequence[int | None], ropes: Sequence[Rope], qk_norm: QKNorm | None = None
) -> Decoder:
    """Layers with these windows and rotary embeddings."""
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias = config.flag("attention_bias")
    attention = GQA(
        num_heads,
        num_kv_heads,
        head_dim,
        ropes[0],
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=qk_norm,
        scores=Scores(config.number("query_pre_attn_scalar") ** -0.5, config.optional_number("attn_logit_softcapping")),
    )
    cap, norm = config.optional_number("final_logit_softcapping"), gemma.norm(config)
    made = replace(gemma.decoder(config, common.in_layers(attention, windows, ropes)), logit_softcap=cap)
    return common.every_layer(made, post_attention_norm=norm, post_ffn_norm=norm)
