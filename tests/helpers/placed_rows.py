"""More rows of `rows.py`: families whose positions are learned, are no part of layers, or weaken scores, and such as
multiply what Llama does not."""

from __future__ import annotations

from typing import Any

from tests.helpers.sizes import ROPES, YARN

PLAIN = {"num_key_value_heads": None, "intermediate_size": None}
FACTORS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 1.7,
}
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
ALPHA = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 1.0, "alpha": 50.0}
WARM = {**YARN, "rope_theta": 500.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
OPT = {**PLAIN, "ffn_dim": 80, "max_position_embeddings": 100}
MPT = {**PLAIN, "max_seq_len": 128, "rms_norm_eps": None, "layer_norm_epsilon": 1e-2}
EXAONE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "head_dim": 12}

PLACED: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "smollm3-window": (
        "smollm3",
        {
            "no_rope_layers": [0, 1, 1],
            "use_sliding_window": True,
            "sliding_window": 5,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {**ROPES["yarn"], "rope_theta": 500.0},
        },
    ),
    "granite": ("granite", FACTORS),
    "granite-biases": ("granite", {**FACTORS, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "granitemoe": ("granitemoe", {**FACTORS, "num_local_experts": 5, "num_experts_per_tok": 3}),
    "gpt2": ("gpt2", {**PLAIN, "n_inner": 80, "layer_norm_epsilon": 1e-2}),
    "gpt2-relu": ("gpt2", {**PLAIN, "activation_function": "relu", "tie_word_embeddings": False}),
    "gpt_bigcode": ("gpt_bigcode", {**PLAIN, "n_inner": 80}),
    "gpt_bigcode-heads": ("gpt_bigcode", {**PLAIN, "multi_query": False, "n_inner": 72}),
    "gpt_neo": (
        "gpt_neo",
        {
            "num_key_value_heads": None,
            "num_layers": 3,
            "num_heads": 6,
            "window_size": 5,
            "attention_types": [[["global", "local"], 1], [["local"], 1]],
        },
    ),
    "cohere": ("cohere", {"rms_norm_eps": None}),
    "cohere-norms": ("cohere", {"use_qk_norm": True, "attention_bias": True, "tie_word_embeddings": False}),
    "cohere2": ("cohere2", {"num_hidden_layers": 5, "sliding_window": 5}),
    "cohere2-types": ("cohere2", {"sliding_window": 7, "layer_types": WINDOWS, "logit_scale": 2.0}),
    "apertus": ("apertus", {"rope_parameters": {**ROPES["llama3"], "rope_theta": 500.0}}),
    "arcee": ("arcee", {"head_dim": 12, "mlp_bias": True}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 12}),
    "hunyuan_v1_dense-alpha": ("hunyuan_v1_dense", {"attention_bias": True, "head_dim": 8, "rope_parameters": ALPHA}),
    "ministral3": ("ministral3", {"head_dim": 12, "rope_parameters": WARM}),
    "mistral3-ministral3": ("mistral3", {"model_type": "ministral3", "head_dim": 12, "rope_parameters": WARM}),
    "exaone4-window": ("exaone4", {"num_hidden_layers": 5, "sliding_window": 5}),
    "exaone_moe": ("exaone_moe", {**EXAONE, "sliding_window": 5, "num_hidden_layers": 5}),
    "exaone_moe-groups": (
        "exaone_moe",
        {
            **EXAONE,
            "num_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "num_shared_experts": 2,
            "norm_topk_prob": False,
            "sliding_window": 7,
            "layer_types": WINDOWS,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
        },
    ),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {"head_dim": 12, "num_experts": 5, "moe_topk": 3}),
    "mpt": ("mpt", {**MPT, "attn_config": {"clip_qkv": 1.5}}),
    "mpt-scale": ("mpt", {**MPT, "num_attention_heads": 8, "attn_config": {"softmax_scale": 0.2}}),
    "opt": ("opt", OPT),
    "opt-plain": (
        "opt",
        {**OPT, "enable_bias": False, "activation_function": "gelu", "layer_norm_elementwise_affine": False},
    ),
    "bloom": ("bloom", {**PLAIN, "layer_norm_epsilon": 1e-2}),
    "bloom-eight": ("bloom", {**PLAIN, "num_attention_heads": 8, "tie_word_embeddings": False}),
}
