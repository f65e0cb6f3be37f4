"""Llama, except: LayerNorms; a quarter of each head turns; q, k and v may have biases; and with `use_parallel_residual`
attention and MLP run side by side behind one norm.

StableLM-3B-4E1T, StableLM 2 1.6B and Zephyr (Bellagente et al., arXiv:2402.17834). StableLM 2 12B, which has a
LayerNorm of its own for each head of q and k, is refused.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, LayerNorm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
}
NAMED = {
    "model.norm": "norm",
    "model.layers.{i}.input_layernorm": "layers.{i}.attention_norm",
    "model.layers.{i}.post_attention_layernorm": "layers.{i}.ffn_norm",
}
RULES = {**common.DENSE_RULES, **common.weights_and_biases(NAMED)}


def spec(config: Config) -> Decoder:
    if config.flag("qk_layernorm"):
        raise ValueError("config.json: qk_layernorm is true; norms that differ from head to head are not supported")
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim, partial=config.get("partial_rotary_factor"))
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=config.flag("use_qkv_bias"))
    layers, norm = common.num_layers(config), LayerNorm(config.number("layer_norm_eps"))
    mlp, parallel = common.gated_mlp(config, "intermediate_size"), config.flag("use_parallel_residual")
    made = common.decoder(config, [attention] * layers, [mlp] * layers, norm)
    return common.every_layer(made, ffn_norm=None, parallel=True) if parallel else made
