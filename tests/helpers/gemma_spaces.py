"""What families draw whose layers share keys and values, for `spaces.py`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.helpers.space_parts import FLAG, PLAIN_ROPES, THETA, WINDOW, mappings

SLIDING, FULL = "sliding_attention", "full_attention"


@st.composite
def kinds(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Layers that have keys and values of their own, and others of the same kinds."""
    own = draw(st.lists(st.sampled_from((SLIDING, FULL)), min_size=1, max_size=3))
    return own, draw(st.lists(st.sampled_from(own), max_size=2))


@st.composite
def streams(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    """Several residual streams, a product of low rank, gates of which little is left, widths that differ."""
    own, others = draw(kinds())
    layers = [*own, *others]
    return {
        "num_hidden_layers": len(layers),
        "layer_types": layers,
        "num_kv_shared_layers": draw(st.integers(0, len(others))),
        "sliding_window": draw(WINDOW),
        "head_dim": 2 * draw(st.integers(1, 6)),
        "attention_bias": draw(FLAG),
        "rope_parameters": {kind: draw(PLAIN_ROPES) for kind in (FULL, SLIDING)},
        "final_logit_softcapping": draw(st.floats(0.5, 30.0)),
        "hidden_size_per_layer_input": draw(st.integers(1, 9)),
        "vocab_size_per_layer_input": draw(st.integers(5, config["vocab_size"])),
        "altup_num_inputs": draw(st.integers(2, 5)),
        "laurel_rank": draw(st.integers(1, 9)),
        "intermediate_size": draw(st.lists(st.integers(3, 70), min_size=len(layers), max_size=len(layers))),
        "activation_sparsity_pattern": draw(
            st.lists(st.just(0.0) | st.floats(0.05, 0.95), min_size=len(layers), max_size=len(layers))
        ),
        "rms_norm_eps": draw(st.sampled_from((1e-3, 1e-2))),
    }


@st.composite
def shared(draw: st.DrawFn, config: dict[str, Any], **more: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Layers of both kinds, the last without a window, some of which have no keys and values of their own."""
    own, others = draw(kinds())
    layers = [*own, *others] if [*own, *others][-1] == FULL else [FULL, *own, *others, FULL]
    half = draw(st.integers(1, 6))
    turned = {
        "rope_type": "proportional",
        "rope_theta": draw(THETA),
        "partial_rotary_factor": draw(st.floats(0.5 / half, 1.0)),
    }
    return {
        "num_hidden_layers": len(layers),
        "layer_types": layers,
        "num_kv_shared_layers": draw(st.integers(0, len(others))),
        "sliding_window": draw(WINDOW),
        "head_dim": 2 * draw(st.integers(1, 6)),
        "global_head_dim": 2 * half,
        "attention_bias": draw(FLAG),
        "attention_k_eq_v": draw(FLAG),
        "num_global_key_value_heads": draw(st.sampled_from((None, 1, config["num_attention_heads"]))),
        "use_double_wide_mlp": draw(FLAG),
        "rope_parameters": {FULL: turned, SLIDING: draw(PLAIN_ROPES)},
        "final_logit_softcapping": draw(st.none() | st.floats(0.5, 30.0)),
        # Norms stand before and behind everything: where all is near zero they multiply rounding.
        "rms_norm_eps": draw(st.sampled_from((1e-3, 1e-2))),
        **draw(st.fixed_dictionaries(more)),
    }


def small(config: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """With embeddings of their own, or a mixture of experts beside the MLP, or both."""
    told = mappings(
        hidden_size_per_layer_input=st.just(0) | st.integers(1, 9),
        vocab_size_per_layer_input=st.just(config["vocab_size"]),
    )
    sparse = mappings(
        enable_moe_block=st.just(True),
        num_experts=st.integers(3, 6),
        top_k_experts=st.integers(1, 3),
        moe_intermediate_size=st.integers(1, 30),
    )
    return st.builds(_together, shared(config), told, st.just({}) | sparse)


def _together(*parts: dict[str, Any]) -> dict[str, Any]:
    """One config; without embeddings of their own no layers that share keys, where transformers 5.23 fails: it drops
    all but the last token's embeddings, and there are none."""
    made = {key: value for part in parts for key, value in part.items()}
    return made if made["hidden_size_per_layer_input"] else {**made, "num_kv_shared_layers": 0}
