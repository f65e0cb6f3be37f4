"""Llama, except: LayerNorms with biases, biases in attention and head where the config says so, and Mixtral's experts
behind SparseMixer: two picks, each with a softmax of its own.

Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE (Abdin et al., arXiv:2404.14219; arXiv:2409.12136). Long contexts use LongRoPE.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config, number
from minillm.families import mixtral
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, LayerNorm, MoE

DEFAULTS = {
    **mixtral.DEFAULTS,
    "vocab_size": 32064,
    "intermediate_size": 6400,
    "num_local_experts": 16,
    "router_jitter_noise": 0.01,
    "attention_bias": False,
    "lm_head_bias": False,
    "original_max_position_embeddings": None,
}

RULES = {
    **mixtral.RULES,
    "model.layers.{i}.mlp.router.weight": "layers.{i}.ffn.router.weight",  # of transformers 5
    "model.norm.bias": "norm.bias",
    "lm_head.bias": "head.bias",
    "model.layers.{i}.input_layernorm.bias": "layers.{i}.attention_norm.bias",
    "model.layers.{i}.post_attention_layernorm.bias": "layers.{i}.ffn_norm.bias",
}
TRANSFORMERS = {"block_sparse_moe.gate": "mlp.router", **mixtral.TRANSFORMERS}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, layers = config.flag("attention_bias"), common.num_layers(config)
    rope = rotary.rope(config, head_dim)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, common.window(config), qkv_bias=bias, out_bias=bias)
    expert = common.gated_mlp(config, "intermediate_size")
    jitter = number("router_jitter_noise", config.get("router_jitter_noise"), low=0.0)
    router = common.router(config, "num_local_experts", score="sparsemixer", jitter=jitter)
    moe = MoE(router, expert.intermediate_size, expert.activation)
    norm = LayerNorm(config.number("rms_norm_eps"))
    decoder = common.decoder(config, [attention] * layers, [moe] * layers, norm)
    return replace(decoder, head_bias=config.flag("lm_head_bias"))
