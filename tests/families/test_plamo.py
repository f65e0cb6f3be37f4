"""PLaMo: published sizes, and what its configs may say of windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minillm.explain.equations import equations
from minillm.families import resolve
from minillm.model.decoder import skeleton

PLAMO_13B = {
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 16640,
    "max_position_embeddings": 8192,
    "model_type": "plamo",
    "n_shared_head": 8,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "vocab_size": 50432,
}
PLAMO_3 = {
    "model_type": "plamo3",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_theta": 1e4,
    "tie_word_embeddings": False,
    "window_size": 9,
    "sliding_window_pattern": 3,
}


def test_the_published_config_of_plamo_13b() -> None:
    """Its three files have 9.95 + 9.90 + 6.35 GB in bfloat16."""
    spec, _, config = resolve(PLAMO_13B)
    assert config.unread == []
    assert spec.layers[0].attention.num_kv_heads == 5
    count = sum(parameter.numel() for parameter in skeleton(spec, torch.bfloat16).parameters())
    assert abs(2 * count - 26.2e9) < 0.02e9


def test_equations_name_every_norm() -> None:
    spec, _, _ = resolve(PLAMO_3)
    lines = equations(spec.layers[0], spec)
    assert {"h = x + n_a(a)", "y = h + n_f(f)", "n: (1 + w) x / sqrt(mean x² + 1e-06)"} <= set(lines)
    assert {"n_a: (0.2 + w) x / sqrt(mean x² + 1e-06)", "n_f: (0.0894427 + w) x / sqrt(mean x² + 1e-06)"} <= set(lines)


def windows(**changes: Any) -> list[int | None]:
    spec, _, config = resolve({**PLAMO_3, **changes})
    assert config.unread == []
    assert spec.final_norm.cast == "before_weight"
    bases = [layer.attention.rope.theta for layer in spec.layers]
    found = [layer.attention.window for layer in spec.layers]
    assert bases == [1e6 if window is None else 1e4 for window in found]
    return found


def test_windows() -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert windows() == [9, 9, None, 9]
    assert windows(sliding_window=5, window_size=None) == [5, 5, None, 5]
    assert windows(layer_types=kinds, sliding_window_pattern=None) == [None, 9, 9, None]
    listed = {"sliding_window": [None, 7, 7, None], "sliding_window_pattern": None}
    assert windows(**listed, layer_types=kinds) == [None, 7, 7, None]
    assert windows(sliding_window=[9, 9, None, 9]) == [9, 9, None, 9]  # as their class saves it
    assert windows(interleaved_sliding_window=[5, 7, 7, None], sliding_window_pattern=None) == [5, 7, 7, None]
    assert windows(window_size=None, sliding_window_pattern=None, rope_local_theta=None) == [None] * 4


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no pattern": (PLAMO_3, {"sliding_window_pattern": None}, "a window needs layer_types or sliding_window_pattern"),
    "two windows": (PLAMO_3, {"sliding_window": 4}, "sliding_window and window_size differ"),
    "pattern and list": (PLAMO_3, {"sliding_window": [3, None, 3, None]}, "do not agree"),
    "pattern and types": (PLAMO_3, {"layer_types": ["sliding_attention"] * 4}, "do not agree"),
    "rotary parameters of words": (
        PLAMO_3,
        {"rope_parameters": {"sliding_attention": "x"}},
        "has x for a kind of layer",
    ),
    "kv heads": (PLAMO_13B, {"num_key_value_heads": "x"}, "num_key_value_heads is 'x'"),
    "fewer windows": (PLAMO_3, {"sliding_window": [3, 3]}, "2 windows are listed for 4 layers"),
    "a window of words": (PLAMO_3, {"sliding_window": [3, 3, "x", 3]}, "is 'x', expected an integer"),
    "contradiction": (
        PLAMO_3,
        {"sliding_window": [3, 3, 3, 3], "layer_types": ["full_attention"] * 4},
        "do not agree",
    ),
    "another activation": (PLAMO_3, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "odd heads": (PLAMO_3, {"num_key_value_heads": 4}, "6 attention heads are no multiple of 4 kv heads"),
    "odd sharing": (PLAMO_13B, {"n_shared_head": 7}, "40 must be a multiple of n_shared_head 7"),
    "PLaMo 2": (PLAMO_3, {"model_type": "plamo2"}, "model_type 'plamo2' is not supported"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs(case: str) -> None:
    values, changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        resolve({**values, **changes})


@pytest.mark.parametrize("key", ["tie_word_embeddings", "head_dim", "rms_norm_eps", "num_key_value_heads"])
def test_what_no_code_at_hand_has_a_default_for(key: str) -> None:
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        resolve({name: value for name, value in PLAMO_3.items() if name != key})
