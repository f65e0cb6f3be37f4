"""Llama, except: LayerNorms; attention and MLP run side by side behind one norm; all heads share one key and value, and
q, k and v lie in one tensor; an MLP without a gate.

Falcon-7B (Almazrouei et al., arXiv:2311.16867). The others are refused: 11B, 40B and 180B have q, k and v of a group of
heads next to each other in a tensor, RW-1B and RW-7B have no rotary positions.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, MLP, Decoder, LayerNorm

# What sets the 7B apart.
FIXED = {
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "alibi": False,
    "bias": False,
    "num_ln_in_parallel_attn": None,
}
DEFAULTS = {
    **llama.DEFAULTS,
    **FIXED,
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_attention_heads": 71,
    "num_kv_heads": None,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
LAYER = "transformer.h.{i}."
RULES = {
    "transformer.word_embeddings.weight": "embedding.weight",
    "lm_head.weight": "head.weight",
    f"{LAYER}self_attention.query_key_value.weight": "layers.{i}.attention.qkv.weight",
    f"{LAYER}self_attention.dense.weight": "layers.{i}.attention.out.weight",
    f"{LAYER}mlp.dense_h_to_4h.weight": "layers.{i}.ffn.up.weight",
    f"{LAYER}mlp.dense_4h_to_h.weight": "layers.{i}.ffn.down.weight",
    **common.weights_and_biases({"transformer.ln_f": "norm", f"{LAYER}input_layernorm": "layers.{i}.attention_norm"}),
}


def spec(config: Config) -> Decoder:
    for key, value in FIXED.items():
        if config.get(key) != value:
            raise ValueError(f"config.json: {key} is {shown(config.get(key))}; of this family {value!r} works")
    num_heads, _, head_dim = common.heads(config)
    config.optional_size("num_kv_heads")  # of the others; transformers writes that of the heads here
    attention = GQA(num_heads, 1, head_dim, rotary.rope(config, head_dim))
    width = config.optional_size("ffn_hidden_size") or 4 * config.size("hidden_size")
    mlp = MLP(width, config.choice("activation", common.ACTIVATIONS))
    layers, norm = common.num_layers(config), LayerNorm(config.number("layer_norm_epsilon"))
    made = common.decoder(config, [attention] * layers, [mlp] * layers, norm)
    return common.every_layer(made, ffn_norm=None, parallel=True)
