"""Published shapes by name, so that a real size can be measured with random weights and without a download.

Each is what the config.json of that model says; keys left out have their family's defaults.
"""

from __future__ import annotations

from typing import Any

_LLAMA3 = {"model_type": "llama", "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
_LLAMA32_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _sizes(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, positions: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
    }


_KINDS = {"M": "linear_attention", "-": "mlp", "*": "full_attention"}
SHAPES: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": {"model_type": "llama", "rms_norm_eps": 1e-5, **_sizes(2048, 5632, 22, 32, 4, 2048)},
    "llama-3.2-1b": {
        **_LLAMA3,
        **_sizes(2048, 8192, 16, 32, 8, 131072),
        "head_dim": 64,
        "rope_scaling": _LLAMA32_ROPE,
        "tie_word_embeddings": True,
    },
    "llama-3.2-3b": {
        **_LLAMA3,
        **_sizes(3072, 8192, 28, 24, 8, 131072),
        "head_dim": 128,
        "rope_scaling": _LLAMA32_ROPE,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        **_LLAMA3,
        **_sizes(4096, 14336, 32, 32, 8, 131072),
        "rope_scaling": {**_LLAMA32_ROPE, "factor": 8.0},
    },
    "mistral-7b": {
        "model_type": "mistral",
        **_sizes(4096, 14336, 32, 32, 8, 32768),
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        **_sizes(4096, 14336, 32, 32, 8, 32768),
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2",
        **_sizes(2048, 10944, 27, 16, 16, 163840),
        "vocab_size": 102400,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
        },
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        **_sizes(896, 4864, 24, 14, 2, 32768),
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": {
        "model_type": "qwen2",
        **_sizes(1536, 8960, 28, 12, 2, 32768),
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "qwen3-moe-1.3b": {  # not published: the family's mixture at a size that small machines hold
        "model_type": "qwen3_moe",
        **_sizes(1024, 3072, 12, 16, 4, 40960),
        "vocab_size": 32768,
        "head_dim": 128,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "norm_topk_prob": True,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        **_sizes(1024, 3072, 28, 16, 8, 40960),
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "qwen3.5-0.8b": {
        "model_type": "qwen3_5_text",
        **_sizes(1024, 3584, 24, 8, 2, 262144),
        "linear_num_value_heads": 16,
        "rope_theta": 10000000.0,
        "tie_word_embeddings": True,
    },
    "lfm2-1.2b": {
        "model_type": "lfm2",
        **_sizes(2048, 12288, 16, 32, 8, 128000),
        "vocab_size": 65536,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    },
    "nemotron-h-4b": {
        "model_type": "nemotron_h",
        **_sizes(3072, 12288, 52, 32, 8, 8192),
        "layers_block_type": [_KINDS[each] for each in "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"],
        "mamba_num_heads": 112,
    },
}
