"""What families with recurrent layers draw, for `spaces.py`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def hybrid(draw: st.DrawFn, config: dict[str, Any], **more: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Layers of both kinds in any order, and the sizes of the recurrent ones."""
    heads = draw(st.integers(1, 3))
    kinds = draw(st.permutations(["linear_attention", "full_attention"] * 2))[: draw(st.integers(3, 4))]
    return {
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "linear_num_key_heads": heads,
        "linear_num_value_heads": heads * draw(st.integers(1, 3)),
        # What a head gives is normalised: where it is all but zero, that multiplies its rounding.
        "rms_norm_eps": draw(st.sampled_from((1e-3, 1e-2))),
        "linear_key_head_dim": draw(st.integers(4, 12)),
        "linear_value_head_dim": draw(st.integers(4, 12)),
        "linear_conv_kernel_dim": draw(st.integers(2, 5)),
        **draw(st.fixed_dictionaries(more)),
    }


@st.composite
def convolved(draw: st.DrawFn, config: dict[str, Any], **more: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Layers of both kinds in any order."""
    kinds = draw(st.permutations(["conv", "full_attention"] * 2))[: draw(st.integers(3, 4))]
    return {
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "conv_L_cache": draw(st.integers(1, 5)),
        "norm_eps": draw(st.sampled_from((1e-6, 1e-5, 1e-3))),
        **draw(st.fixed_dictionaries(more)),
    }


@st.composite
def gated(draw: st.DrawFn, config: dict[str, Any], **more: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Besides, heads of a width of their own of which a part turns."""
    half = draw(st.integers(1, 10))
    factor = min((2 * draw(st.integers(1, half)) + 0.5) / (2 * half), 1.0)
    rope = {"rope_type": "default", "rope_theta": draw(st.floats(20.0, 1e6)), "partial_rotary_factor": factor}
    return {
        **draw(hybrid(config, **more)),
        "head_dim": 2 * half,
        "attention_bias": draw(st.booleans()),
        "rope_parameters": rope,
    }
