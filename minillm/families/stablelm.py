"""Llama, except: LayerNorms; a quarter of each head turns; q, k and v may have biases; and with `use_parallel_residual`
attention and MLP run side by side behind one norm; with `qk_layernorm` each head of q and k is normalised with weights
of its own.

StableLM-3B-4E1T, StableLM 2 1.6B, 12B and Zephyr (Bellagente et al., arXiv:2402.17834).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, LayerNorm, QKNorm

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
LAYER, OURS = "model.layers.{i}.self_attn.", "layers.{i}.attention."
RULES = {
    **common.DENSE_RULES,
    **common.weights_and_biases(NAMED),
    **{f"{LAYER}{x}_layernorm.norms.{{h}}.weight": f"{OURS}{x}_norm.weight[{{h}}]: d -> 1 d" for x in ("q", "k")},
}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim, partial=config.get("partial_rotary_factor"))
    layers, norm = common.num_layers(config), LayerNorm(config.number("layer_norm_eps"))
    normed = QKNorm(LayerNorm(norm.eps, bias=False), "heads") if config.flag("qk_layernorm") else None
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=config.flag("use_qkv_bias"), qk_norm=normed)
    mlp, parallel = common.gated_mlp(config, "intermediate_size"), config.flag("use_parallel_residual")
    made = common.decoder(config, [attention] * layers, [mlp] * layers, norm)
    return common.every_layer(made, ffn_norm=None, parallel=True) if parallel else made
