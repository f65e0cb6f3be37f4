"""Llama, except: a learned row for each position is added to a token's embedding, and nothing turns; LayerNorms; an MLP
without a gate; biases everywhere; every head has a key and value of its own. The head is the embedding.

GPT-2 124M to 1.5B (Radford et al., 2019), DistilGPT2, the Japanese GPT-2 models, Cerebras-GPT. There are no positions
beyond `n_positions`. Matrices are stored with a row for each input, those of q, k and v in one tensor.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families.shared import common, learned
from minillm.spec import Decoder

# What this family's code knows.
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
DEFAULTS = {
    **learned.DEFAULTS,
    **FIXED,
    "vocab_size": 50257,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
    "n_ctx": None,
    "reorder_and_upcast_attn": False,
}
LAYER = "transformer.h.{i}."
TURNED = {
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "ffn.up",
    "mlp.c_proj": "ffn.down",
}
RULES = {
    **learned.RULES,
    **{f"{LAYER}{name}.weight": f"layers.{{i}}.{to}.weight: e o -> o e" for name, to in TURNED.items()},
    **{f"{LAYER}{name}.bias": f"layers.{{i}}.{to}.bias" for name, to in TURNED.items()},
}


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(("n_ctx", "reorder_and_upcast_attn"))  # another order of the same
    return learned.decoder(config, learned.alike(config, config.size("num_attention_heads")))
