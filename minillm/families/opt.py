"""Llama, except: a learned row for each position is added to a token's embedding, and nothing turns; LayerNorms; an MLP
of ReLU without a gate; biases everywhere; every head has a key and value of its own. The head is the embedding.

OPT 125M to 66B (Zhang et al., arXiv:2205.01068), Galactica. The first two rows of positions stand for none. The 350M,
whose norms stand behind the sums and whose embedding is narrower than its layers, is refused.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families.shared import common
from minillm.guard.screen import shown
from minillm.spec import GQA, MLP, Decoder, Embedding, LayerNorm, Learned

FIXED = {"do_layer_norm_before": True, "_remove_final_layer_norm": False}
SKIPPED, EPS = 2, 1e-5
DEFAULTS = {
    **FIXED,
    "vocab_size": 50272,
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "relu",
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": None,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
    **dict.fromkeys(("dropout", "layerdrop", "init_std", "prefix")),
}
LAYER = "model.decoder.layers.{i}."
NAMED = {
    "model.decoder.final_layer_norm": "norm",
    f"{LAYER}self_attn_layer_norm": "layers.{i}.attention_norm",
    f"{LAYER}final_layer_norm": "layers.{i}.ffn_norm",
    f"{LAYER}self_attn.out_proj": "layers.{i}.attention.out",
    f"{LAYER}fc1": "layers.{i}.ffn.up",
    f"{LAYER}fc2": "layers.{i}.ffn.down",
}
OUTER = {
    "model.decoder.embed_tokens.weight": "embedding.weight",
    "model.decoder.embed_positions.weight": "positions.weight",
    **common.weights_and_biases(NAMED),
    **{
        f"{LAYER}self_attn.{part}_proj.{kind}": f"layers.{{i}}.attention.qkv.{kind}[{part}]"
        for part in "qkv"
        for kind in ("weight", "bias")
    },
}
RULES = {
    "lm_head.weight": "head.weight",
    **OUTER,
    **{name.removeprefix("model."): to for name, to in OUTER.items()},  # as first published
}


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(("dropout", "layerdrop", "init_std", "prefix"))
    width, narrow = config.size("hidden_size"), config.optional_size("word_embed_proj_dim")
    if narrow not in (None, width):
        raise ValueError(f"config.json: word_embed_proj_dim is {shown(narrow)}; an embedding of {width} values works")
    num_heads, _, head_dim = common.heads(config)
    bias, affine = config.flag("enable_bias"), config.flag("layer_norm_elementwise_affine")
    attention = GQA(num_heads, num_heads, head_dim, None, qkv_bias=bias, out_bias=bias)
    mlp = MLP(config.size("ffn_dim"), config.choice("hidden_act", common.PLAIN_ACTIVATIONS), bias)
    layers = common.num_layers(config)
    made = common.decoder(config, [attention] * layers, [mlp] * layers, LayerNorm(EPS, affine))
    return replace(made, embedding=Embedding(positions=Learned(made.context, SKIPPED)))
