"""Llama, except: embeddings times sqrt(hidden size), norms with weight 1 + w rounded after it, a gated MLP with gelu's
tanh approximation, wide heads, and a head tied to the embedding.

Gemma 2B, 7B (arXiv:2403.08295). Early files say `hidden_act` "gelu" and mean the approximation, as the
authors' code has.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, Embedding, GatedMLP, Norm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": None,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": None,
}
RULES = common.DENSE_RULES
ACTIVATIONS = {**common.ACTIVATIONS, "gelu": "gelu_tanh"}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, rope = config.flag("attention_bias"), rotary.rope(config, head_dim)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias)
    return decoder(config, [attention] * common.num_layers(config))


def decoder(config: Config, attention: list[GQA]) -> Decoder:
    """These attentions with the family's norms, MLPs and embedding."""
    common.causal_only(config)
    key = "hidden_activation" if config.get("hidden_activation") is not None else "hidden_act"
    config.choice("hidden_act", ACTIVATIONS)  # without effect beside hidden_activation
    activations = ACTIVATIONS if key == "hidden_act" else common.ACTIVATIONS
    mlp = GatedMLP(config.size("intermediate_size"), config.choice(key, activations))
    made = common.decoder(config, attention, [mlp] * len(attention), norm(config))
    return replace(made, embedding=Embedding(made.hidden_size**0.5))


def norm(config: Config) -> Norm:
    return Norm(config.number("rms_norm_eps"), offset=1.0, cast="after_weight")
