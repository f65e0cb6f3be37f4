"""Llama, except: all that GPT-NeoX changes, but attention and MLP run one after the other, whole heads are rotated, the
head is tied to the embedding, and the only bias is that of the last layer's attention.

abeja/gpt-neox-japanese-2.7b (ABEJA, 2022). Its tokenizer is a list of words and pieces of its own.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, MLP, Decoder, LayerNorm

DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if not key.endswith("_bias")},
    "hidden_size": 2560,
    "intermediate_multiple_size": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "tie_word_embeddings": True,
}
WHOLE, LAYER = "gpt_neox_japanese.", "gpt_neox_japanese.layers.{i}."


def rules(config: Config) -> dict[str, str]:
    """Rows of the tensor of q, k and v are those of the first head, of the second, and so on."""
    norms = {
        f"{WHOLE}final_layer_norm": "norm",
        f"{LAYER}input_layernorm": "layers.{i}.attention_norm",
        f"{LAYER}post_attention_layernorm": "layers.{i}.ffn_norm",
    }
    return {
        f"{WHOLE}embed_in.weight": "embedding.weight",
        "embed_out.weight": "head.weight",
        **common.weights_and_biases(norms),
        f"{LAYER}attention.query_key_value.weight": "layers.{i}.attention.qkv.weight: "
        f"(head part d) e -> (part head d) e, head={common.heads(config)[0]} part=3",
        f"{LAYER}attention.dense.weight": "layers.{i}.attention.out.weight",
        f"{LAYER}attention.dense_bias": "layers.{i}.attention.out.bias",
        f"{LAYER}mlp.dense_h_to_4h.weight": "layers.{i}.ffn.up.weight",
        f"{LAYER}mlp.dense_4h_to_h.weight": "layers.{i}.ffn.down.weight",
    }


def spec(config: Config) -> Decoder:
    num_heads, _, head_dim = common.heads(config)
    values = config.rope()
    if "rope_theta" not in config.values and "rope_theta" not in (config.get("rope_parameters") or {}):
        values["rope_theta"] = config.get("rotary_emb_base")
    rope = rotary.rope(config, head_dim, values, config.get("rotary_pct"))
    width = int(config.size("hidden_size") * config.number("intermediate_multiple_size"))
    mlp, layers = MLP(width, config.choice("hidden_act", common.PLAIN_ACTIVATIONS)), common.num_layers(config)
    attention = [GQA(num_heads, num_heads, head_dim, rope)] * layers
    attention[-1] = replace(attention[-1], out_bias=True)
    return common.decoder(config, attention, [mlp] * layers, LayerNorm(config.number("layer_norm_eps")))
