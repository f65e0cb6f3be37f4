"""Llama, except: most layers have Mamba 2 in place of attention; the others rotate half of each head; the final norm
and the feed-forward have other names.

Bamba-9B v1 and v2 (IBM, Princeton, CMU and UIUC, 2024 and 2025).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.recurrent import state_space
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, Mixer, Norm

DEFAULTS = {
    **llama.DEFAULTS,
    **state_space.DEFAULTS,
    "vocab_size": 128000,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 262144,
    "attn_layer_indices": None,
    "attn_rotary_emb": None,
    "mamba_d_head": 64,
}
FFN, LAYER = "layers.{i}.ffn.", "model.layers.{i}."
RULES = {
    **common.without_mlp(common.DENSE_RULES),
    **state_space.rules(f"{LAYER}mamba."),
    "model.final_layernorm.weight": "norm.weight",
    f"{LAYER}pre_ff_layernorm.weight": "layers.{i}.ffn_norm.weight",
    **{
        f"{LAYER}feed_forward.{part}_proj.{kind}": f"{FFN}gate_up.{kind}[{part}]"
        for part in ("gate", "up")
        for kind in ("weight", "bias")
    },
    **{f"{LAYER}feed_forward.down_proj.{kind}": f"{FFN}down.{kind}" for kind in ("weight", "bias")},
}


def spec(config: Config) -> Decoder:
    config.choice("hidden_act", {"silu": None, "swish": None})  # which the convolutions are followed by too
    num_heads, num_kv_heads, head_dim = common.heads(config)
    config.derived("attn_rotary_emb", {head_dim // 2})
    bias, rope = config.flag("attention_bias"), rotary.rope(config, head_dim, partial=0.5)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias)
    inner = int(config.number("mamba_expand") * config.size("hidden_size"))
    mamba = state_space.mamba(config, Norm(config.number("rms_norm_eps")), inner=inner)
    listed, layers = config.get("attn_layer_indices") or [], common.num_layers(config)
    if not isinstance(listed, list) or any(type(each) is not int or not 0 <= each < layers for each in listed):
        raise ValueError(
            f"config.json: attn_layer_indices is {shown(listed)}, expected numbers of layers below {layers}"
        )
    mixers: list[Mixer] = [attention if i in listed else mamba for i in range(layers)]
    mlp = common.gated_mlp(config, "intermediate_size", config.flag("mlp_bias"))
    return common.decoder(config, mixers, [mlp] * layers)
