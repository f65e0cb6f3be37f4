"""More rows of `rows.py`: families whose attention has a gate, shapes of its own in each layer, or sees chunks, and
smaller ones."""

from __future__ import annotations

from typing import Any

from tests.helpers.sizes import EXPERTS, YARN

TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
LAGUNA = {**EXPERTS, "head_dim": 12, "shared_expert_intermediate_size": 28, "sliding_window": 5, "layer_types": TYPES}
TURNS = {
    "full_attention": {**YARN, "rope_theta": 500.0, "partial_rotary_factor": 0.5, "attention_factor": 1.2},
    "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
}
AFMOE = {**EXPERTS, "head_dim": 12, "num_hidden_layers": 5, "sliding_window": 5}
MUSE = {"head_dim": 12, "num_hidden_layers": 5, "sliding_window": 5, "tie_word_embeddings": False}

TAIL: dict[str, tuple[str, dict[str, Any]]] = {
    "laguna": (
        "laguna",
        {
            **LAGUNA,
            "num_attention_heads_per_layer": [6, 4, 8],
            "rope_parameters": TURNS,
            "moe_routed_scaling_factor": 2.5,
        },
    ),
    "laguna-elements": ("laguna", {**LAGUNA, "gating": "per-element", "attention_bias": True}),
    "afmoe": ("afmoe", {**AFMOE, "mup_enabled": True, "route_scale": 1.7}),
    "afmoe-dense": (
        "afmoe",
        {**AFMOE, "num_dense_layers": 3, "rope_parameters": {**ROPES["yarn"], "rope_theta": 500.0}},
    ),
    "muse_glimmer": ("muse_glimmer", MUSE),
    "muse_glimmer-turns": (
        "muse_glimmer",
        {**MUSE, "layer_rope_theta": [1, 0, 0, 1, 1], "qk_scale_factor": 1.3},
    ),
}
