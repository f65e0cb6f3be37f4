"""Llama, except: LayerNorms; attention and MLP run side by side, each behind a norm of its own; an MLP without a gate;
biases; a quarter of each head turns; q, k and v lie in one tensor, head by head.

Pythia, GPT-NeoX-20B, Dolly 2 (arXiv:2304.01373, arXiv:2204.06745).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, MLP, Decoder, LayerNorm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 50432,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "attention_bias": True,
    "use_parallel_residual": True,
}
LAYER = "gpt_neox.layers.{i}."
STORED_CONSTANTS = ("bias", "masked_bias", "rotary_emb.inv_freq")  # of early exports
# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = {"embed_out": "lm_head"}


def rules(config: Config) -> dict[str, str]:
    """Rows of the tensor of q, k and v are those of the first head, of the second, and so on."""
    named = {
        "gpt_neox.final_layer_norm": "norm",
        f"{LAYER}input_layernorm": "layers.{i}.attention_norm",
        f"{LAYER}post_attention_layernorm": "layers.{i}.ffn_norm",
        f"{LAYER}attention.dense": "layers.{i}.attention.out",
        f"{LAYER}mlp.dense_h_to_4h": "layers.{i}.ffn.up",
        f"{LAYER}mlp.dense_4h_to_h": "layers.{i}.ffn.down",
    }
    heads = common.heads(config)[0]
    return {
        "gpt_neox.embed_in.weight": "embedding.weight",
        "embed_out.weight": "head.weight",
        "lm_head.weight": "head.weight",
        **common.weights_and_biases(named),
        **{
            f"{LAYER}attention.query_key_value.{kind}": f"layers.{{i}}.attention.qkv.{kind}: "
            f"(head part d) ... -> (part head d) ..., head={heads} part=3"
            for kind in ("weight", "bias")
        },
        **{f"{LAYER}attention.{name}": "DROP" for name in STORED_CONSTANTS},
    }


def spec(config: Config) -> Decoder:
    num_heads, _, head_dim = common.heads(config)
    values = config.rope()
    if "rope_theta" not in config.values and "rope_theta" not in (config.get("rope_parameters") or {}):
        values["rope_theta"] = config.get("rotary_emb_base")
    rope = rotary.rope(config, head_dim, values, config.get("rotary_pct"))
    bias, parallel = config.flag("attention_bias"), config.flag("use_parallel_residual")
    attention = GQA(num_heads, num_heads, head_dim, rope, qkv_bias=bias, out_bias=bias)
    mlp = MLP(config.size("intermediate_size"), config.choice("hidden_act", common.ACTIVATIONS), bias=True)
    layers, norm = common.num_layers(config), LayerNorm(config.number("layer_norm_eps"))
    made = common.decoder(config, [attention] * layers, [mlp] * layers, norm)
    return common.every_layer(made, parallel=parallel)
