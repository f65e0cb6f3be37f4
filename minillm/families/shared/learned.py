"""A learned row for each position: GPT-2 and what is built like it, under its names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minillm.config import Config
from minillm.families.shared import common
from minillm.spec import GQA, MLP, Decoder, Embedding, LayerNorm, Learned

DEFAULTS = {
    "intermediate_size": None,
    "head_dim": None,
    "num_key_value_heads": None,
    "hidden_act": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    **dict.fromkeys(  # of heads that tell classes apart
        ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout")
    ),
}
LAYER = "transformer.h.{i}."
RULES = {
    "transformer.wte.weight": "embedding.weight",
    "transformer.wpe.weight": "positions.weight",
    "lm_head.weight": "head.weight",
    f"{LAYER}attn.bias": "DROP",  # computed; early exports stored it
    f"{LAYER}attn.masked_bias": "DROP",
    **common.weights_and_biases(
        {
            "transformer.ln_f": "norm",
            f"{LAYER}ln_1": "layers.{i}.attention_norm",
            f"{LAYER}ln_2": "layers.{i}.ffn_norm",
        }
    ),
}


def decoder(config: Config, attention: Sequence[GQA]) -> Decoder:
    """Of layers with these attentions, whose MLPs have biases and are four times as wide as the embedding where the
    config is silent."""
    config.without_effect(key for key in DEFAULTS if key.startswith("summary_"))
    width = config.optional_size("intermediate_size") or 4 * config.size("hidden_size")
    mlp = MLP(width, config.choice("hidden_act", common.PLAIN_ACTIVATIONS), bias=True)
    norm = LayerNorm(config.number("layer_norm_epsilon"))
    made = common.decoder(config, attention, [mlp] * len(attention), norm)
    return replace(made, embedding=Embedding(positions=Learned(made.context)))


def alike(config: Config, kv_heads: int) -> list[GQA]:
    """The same attention, with biases, in every layer."""
    num_heads, _, head_dim = common.heads(config)
    return [GQA(num_heads, kv_heads, head_dim, None, qkv_bias=True, out_bias=True)] * common.num_layers(config)
