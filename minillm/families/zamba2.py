"""Llama, except: every layer is Mamba 2; some are preceded by a block of attention and MLP that reads the hidden states
and the embedding side by side. These layers share the weights of one or two such blocks, and each use has low-rank
changes of its own.

Zamba2 1.2B, 2.7B, 7B (Zyphra, 2024; Glorioso et al., arXiv:2411.15242). As for Nemotron-H, transformers 5.23 clamps the
steps of a prompt to `time_step_min`, but not its own steps of one token.
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config
from minillm.families.recurrent import state_space
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, Layer, Norm, Scores, SharedBlock

KEYS = state_space.Keys("n_mamba_heads", "mamba_headdim", "mamba_ngroups", "mamba_d_state", "mamba_d_conv",
                        "use_conv_bias", "add_bias_linear")  # fmt: skip
ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
LEFT_OVER = ("kv_channels", "num_query_groups", "hybrid_layer_ids", "use_mem_eff_path", "attention_hidden_size",
             "attention_head_dim", "ffn_hidden_size", *ROPE)  # fmt: skip
FIXED = {"use_conv_bias": True, "add_bias_linear": False, "use_long_context": False}
DEFAULTS: dict[str, Any] = {
    **FIXED,
    **dict(zip(KEYS, (8, "auto", 1, 64, 4, True, False), strict=True)),
    **dict.fromkeys(("intermediate_size", "num_key_value_heads", "layers_block_type", *ROPE)),
    "vocab_size": 32000,
    "hidden_size": 2560,
    "num_hidden_layers": 54,
    "num_attention_heads": 32,
    "hidden_act": "gelu",
    "mamba_expand": 2,
    "num_mem_blocks": 1,
    "use_shared_attention_adapter": False,
    "adapter_rank": 128,
    "use_mem_rope": False,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "time_step_limit": None,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
LAYER = "model.layers.{i}."


def rules(config: Config) -> dict[str, str]:
    return {
        "model.embed_tokens.weight": "embedding.weight",
        "model.final_layernorm.weight": "norm.weight",
        "lm_head.weight": "head.weight",
        f"{LAYER}input_layernorm.weight": "layers.{i}.attention_norm.weight",
        **state_space.rules(f"{LAYER}mamba."),
        **state_space.rules_behind(f"{LAYER}mamba_decoder."),
        **state_space.changes(state_space.owners(config)),
    }


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(LEFT_OVER)
    norm = Norm(config.number("rms_norm_eps"))
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if 2 * hidden % heads:
        raise ValueError(f"config.json: 2 x hidden_size {hidden} is no multiple of {heads} heads")
    size, kv_heads = 2 * hidden // heads, config.optional_size("num_key_value_heads") or heads
    rope = rotary.rope(config, size) if config.flag("use_mem_rope") else None
    attention = GQA(heads, kv_heads, size, rope, scores=Scores((size / 2) ** -0.5))
    mamba = state_space.mamba(config, Norm(1e-5), KEYS, int(config.number("mamba_expand") * hidden))
    mlp = common.gated_mlp(config, "intermediate_size") if config.get("intermediate_size") else None
    adapted = config.flag("use_shared_attention_adapter")
    block = SharedBlock(norm, attention, norm, mlp or state_space.wide(config), config.size("adapter_rank"), adapted)
    owners = state_space.owners(config)
    fronted = {i: state_space.fronted(block, i, of, norm, mamba) for i, of in owners.items()}
    layers = range(common.num_layers(config))
    return Decoder(
        config.size("vocab_size"),
        hidden,
        tuple(Layer(None, fronted[i], None, None) if i in fronted else Layer(norm, mamba, None, None) for i in layers),
        norm,
        config.flag("tie_word_embeddings"),
        config.positions("max_position_embeddings"),
    )
