"""Llama, except: LayerNorms without bias; attention and MLP run side by side behind one norm; neighbours form the pairs
of the rotation; logits have a factor; where `use_qk_norm` is on, each head of q and k is normalised with a weight of
its own. The head is the embedding.

Command-R, Command-R+, Aya 23 and Aya Expanse (Cohere, 2024).
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, LayerNorm, QKNorm, Rope

DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key not in ("rms_norm_eps", "mlp_bias")},
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "model_max_length": None,
    "layer_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "logit_scale": 0.0625,
    "use_qk_norm": False,
}
RULES = {**common.DENSE_RULES, **common.QK_NORM_RULES}


def spec(config: Config) -> Decoder:
    norm = LayerNorm(config.number("layer_norm_eps"), bias=False)
    normed = QKNorm(norm, "heads") if config.flag("use_qk_norm") else None
    attention = replace(mixer(config), qk_norm=normed)
    return parallel(config, [attention] * common.num_layers(config), norm)


def mixer(config: Config) -> GQA:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias = config.flag("attention_bias")
    rope: Rope = replace(rotary.rope(config, head_dim), layout="interleaved")
    return GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias)


def parallel(config: Config, mixers: list[GQA], norm: LayerNorm) -> Decoder:
    """A decoder of layers whose attention and MLP share a norm."""
    config.without_effect(["model_max_length"])
    mlp = common.gated_mlp(config, "intermediate_size")
    made = common.every_layer(common.decoder(config, mixers, [mlp] * len(mixers), norm), ffn_norm=None, parallel=True)
    return replace(made, logit_scale=config.number("logit_scale"))
