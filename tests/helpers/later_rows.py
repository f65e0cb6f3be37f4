"""More rows of `rows.py`: text models inside others."""

from __future__ import annotations

from typing import Any

from tests.helpers.sizes import EXPERTS, LATENT

SECTIONS = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [3, 2, 3]}

LATER: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("qwen2_vl", {"rope_parameters": {**SECTIONS, "mrope_section": [2, 1, 1]}}),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {**SECTIONS, "mrope_section": [1, 1, 2]},
        },
    ),
    "qwen3_vl": ("qwen3_vl", {"head_dim": 16, "rope_parameters": {**SECTIONS, "mrope_interleaved": True}}),
    "qwen3_vl_moe": ("qwen3_vl_moe", {**EXPERTS, "head_dim": 16, "mlp_only_layers": [1], "attention_bias": True}),
    "kimi_k25": ("kimi_k25", {**LATENT, "n_group": 1, "topk_group": 1}),
    "mistral3": ("mistral3", {"head_dim": 12, "sliding_window": 5}),
}
