"""Llama, except: all that GLM changes, under other names; q, k and v lie in one tensor. The base of the rotation is
10000 times `rope_ratio`.

ChatGLM2-6B, ChatGLM3-6B, GLM-4-9B-chat (GLM team, arXiv:2406.12793). Their tokenizers are Python code, which is not
run: give token ids. transformers has no class for it: the tests compare with GLM's under these names.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families.shared import common
from minillm.spec import GQA, Decoder, GatedMLP, Layer, Norm, Rope

FIXED = {  # no other value is published
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "multi_query_attention": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "original_rope": True,
}
IDLE = {  # how to compute, and not what
    "apply_query_key_layer_scaling": True,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "fp32_residual_connection": False,
    "quantization_bit": 0,
    "pre_seq_len": None,
    "prefix_projection": False,
}
DEFAULTS = {
    **FIXED,
    **IDLE,
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "multi_query_group_num": 2,
    "kv_channels": 128,
    "add_qkv_bias": True,
    "layernorm_epsilon": 1e-5,
    "rope_ratio": 1,
    "seq_length": 2048,
    "tie_word_embeddings": False,
}
LAYER, OURS = "transformer.encoder.layers.{i}.", "layers.{i}."
RULES = {
    "transformer.embedding.word_embeddings.weight": "embedding.weight",
    "transformer.encoder.final_layernorm.weight": "norm.weight",
    "transformer.output_layer.weight": "head.weight",
    "transformer.rotary_pos_emb.inv_freq": "DROP",  # computed
    f"{LAYER}input_layernorm.weight": f"{OURS}attention_norm.weight",
    f"{LAYER}post_attention_layernorm.weight": f"{OURS}ffn_norm.weight",
    f"{LAYER}self_attention.query_key_value.weight": f"{OURS}attention.qkv.weight",
    f"{LAYER}self_attention.query_key_value.bias": f"{OURS}attention.qkv.bias",
    f"{LAYER}self_attention.dense.weight": f"{OURS}attention.out.weight",
    f"{LAYER}mlp.dense_h_to_4h.weight": f"{OURS}ffn.gate_up.weight",
    f"{LAYER}mlp.dense_4h_to_h.weight": f"{OURS}ffn.down.weight",
}


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    for key in IDLE:
        config.get(key)
    heads, kv_heads = config.size("num_attention_heads"), config.size("multi_query_group_num")
    head_dim = config.size("kv_channels")
    if heads % kv_heads or head_dim % 4:
        raise ValueError(
            f"config.json: num_attention_heads {heads} must be a multiple of multi_query_group_num {kv_heads}, and "
            f"kv_channels {head_dim} of 4"
        )
    rope = Rope(head_dim // 2, 10000.0 * config.number("rope_ratio"), "interleaved")
    attention = GQA(heads, kv_heads, head_dim, rope, qkv_bias=config.flag("add_qkv_bias"))
    norm = Norm(config.number("layernorm_epsilon"))
    layer = Layer(norm, attention, norm, GatedMLP(config.size("ffn_hidden_size")))
    return Decoder(
        vocab_size=config.size("padded_vocab_size"),
        hidden_size=config.size("hidden_size"),
        layers=(layer,) * common.num_layers(config),
        final_norm=norm,
        tied=config.flag("tie_word_embeddings"),
        context=config.positions("seq_length"),
    )
