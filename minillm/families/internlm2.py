"""Llama, except: q, k and v in one tensor, group by group: the queries that share a key, the key, the value; other
names.

InternLM2 and 2.5 1.8B, 7B, 20B (Cai et al., arXiv:2403.17297). transformers has no class; its mathematics is Llama's.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key not in ("attention_bias", "mlp_bias")},
    "vocab_size": 103168,
    "bias": True,
}
LAYER, OURS = "model.layers.{i}.", "layers.{i}."


def rules(config: Config) -> dict[str, str]:
    heads, kv_heads, head_dim = common.heads(config)
    grouped = f"{kv_heads} x {heads // kv_heads * head_dim} {head_dim} {head_dim} -> parts"
    return {
        "model.tok_embeddings.weight": "embedding.weight",
        "model.norm.weight": "norm.weight",
        "output.weight": "head.weight",
        f"{LAYER}attention_norm.weight": f"{OURS}attention_norm.weight",
        f"{LAYER}ffn_norm.weight": f"{OURS}ffn_norm.weight",
        **{f"{LAYER}attention.wqkv.{kind}": f"{OURS}attention.qkv.{kind}: {grouped}" for kind in ("weight", "bias")},
        **common.weights_and_biases({f"{LAYER}attention.wo": f"{OURS}attention.out"}),
        f"{LAYER}feed_forward.w1.weight": f"{OURS}ffn.gate_up.weight[gate]",
        f"{LAYER}feed_forward.w3.weight": f"{OURS}ffn.gate_up.weight[up]",
        f"{LAYER}feed_forward.w2.weight": f"{OURS}ffn.down.weight",
    }


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope, bias = rotary.rope(config, head_dim), config.flag("bias")
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias)
    return common.dense(config, [attention] * common.num_layers(config))
