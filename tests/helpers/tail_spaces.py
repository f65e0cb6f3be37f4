"""More spaces of `spaces.py`, for the families of `tail_rows.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.helpers.later_spaces import grouped, mixed
from tests.helpers.placed_spaces import EPS, PLACED, turns, warm
from tests.helpers.space_parts import (
    FLAG,
    HEAD_DIM,
    PLAIN_ROPES,
    WINDOW,
    experts,
    latent,
    layer_types,
    mappings,
    partial_ropes,
)

Draws = st.SearchStrategy[dict[str, Any]]
SCALE, WIDTH = st.floats(0.5, 4.0), st.integers(1, 40)

PARTS = st.builds(  # of heads of 12
    lambda rope, turned: {**rope, "partial_rotary_factor": (turned + 0.5) / 12 if turned < 12 else 1.0},
    PLAIN_ROPES,
    st.sampled_from((2, 4, 6, 12)),
)


def by_layer(config: dict[str, Any]) -> st.SearchStrategy[list[int]]:
    """Numbers of heads."""
    each = st.integers(1, 3).map(lambda n: n * config["num_key_value_heads"])
    return st.lists(each, min_size=config["num_hidden_layers"], max_size=config["num_hidden_layers"])


def each_of(config: dict[str, Any], kinds: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    """One for each layer."""
    layers = config["num_hidden_layers"]
    return st.lists(st.sampled_from(kinds), min_size=layers, max_size=layers)


def without_shared(drawn: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in drawn.items() if key not in ("n_shared_experts", "first_k_dense_replace")}


@st.composite
def indexed(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    """Latent attention that always has a latent of queries, which an indexer reads too."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    drawn = draw(latent(layers, heads, norm_topk_prob=FLAG, mlp_layer_types=mixed(config)))
    sizes = {"index_n_heads": 16, "index_head_dim": drawn["qk_rope_head_dim"] + draw(HEAD_DIM)}
    kinds = ["full", *(draw(st.sampled_from(("full", "shared"))) for _ in range(layers - 1))]
    chosen = {"index_topk": draw(st.integers(1, 30)), "indexer_types": kinds}
    return {**drawn, **sizes, **chosen, "q_lora_rank": drawn["q_lora_rank"] or draw(WIDTH)}


@st.composite
def growing(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    kv_heads = [draw(st.integers(1, 3)) for _ in range(layers)]
    return {
        "head_dim": draw(HEAD_DIM),
        "num_kv_heads": kv_heads,
        "num_query_heads": [each * draw(st.integers(1, 3)) for each in kv_heads],
        "ffn_multipliers": [draw(st.floats(0.2, 2.0)) for _ in range(layers)],
        "ffn_dim_divisor": draw(st.integers(1, 20)),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }


TAIL: dict[str, Callable[[dict[str, Any]], Draws]] = {
    "laguna": lambda c: experts(
        moe_intermediate_size=WIDTH,
        shared_expert_intermediate_size=WIDTH,
        moe_routed_scaling_factor=SCALE,
        head_dim=HEAD_DIM,
        attention_bias=FLAG,
        gating=st.sampled_from((True, "per-head", "per-element")),
        num_attention_heads_per_layer=by_layer(c),
        sliding_window=WINDOW,
        layer_types=layer_types(c),
        mlp_layer_types=mixed(c),
        rope_parameters=mappings(full_attention=PLAIN_ROPES, sliding_attention=PLAIN_ROPES),
    ),
    "afmoe": lambda c: experts(
        moe_intermediate_size=WIDTH,
        num_shared_experts=st.integers(1, 3),
        num_dense_layers=st.integers(0, c["num_hidden_layers"]),
        route_scale=SCALE,
        head_dim=HEAD_DIM,
        attention_bias=FLAG,
        mup_enabled=FLAG,
        sliding_window=WINDOW,
        layer_types=layer_types(c),
    ),
    "muse_glimmer": lambda c: mappings(
        head_dim=HEAD_DIM,
        attention_bias=FLAG,
        sliding_window=WINDOW,
        layer_types=layer_types(c),
        layer_rope_theta=turns(c),
        qk_scale_factor=SCALE,
        output_multiplier=st.floats(0.1, 1.0),
        final_logit_softcapping=st.floats(0.5, 30.0),
        post_norm_eps=st.sampled_from((1e-8, 1e-3)),
    ),
    "nemotron": lambda c: mappings(
        rms_norm_eps=st.none(), norm_eps=EPS, attention_bias=FLAG, mlp_bias=FLAG, rope_parameters=partial_ropes(c)
    ),
    "mistral4": lambda c: latent(
        c["num_hidden_layers"],
        c["num_attention_heads"],
        norm_topk_prob=FLAG,
        rope_interleave=FLAG,
        rope_parameters=warm(c).map(lambda drawn: drawn["rope_parameters"]),
    ),
    "llama4_text": lambda c: experts(
        "num_local_experts",
        intermediate_size_mlp=WIDTH,
        head_dim=HEAD_DIM,
        attention_bias=FLAG,
        use_qk_norm=FLAG,
        no_rope_layers=turns(c).filter(any),
        attention_chunk_size=WINDOW,
        attn_temperature_tuning=FLAG,
        floor_scale=WINDOW,
        attn_scale=st.floats(0.05, 1.0),
        interleave_moe_layer_step=st.integers(1, 2),
    ),
    "mimo_v2_flash": lambda c: grouped(
        c,
        num_attention_heads=st.just(2 * c["num_attention_heads"]),
        head_dim=st.just(12),
        v_head_dim=st.integers(1, 20),
        attention_bias=FLAG,
        attention_value_scale=st.none() | SCALE,
        sliding_window=WINDOW,
        layer_types=layer_types(c),
        mlp_layer_types=mixed(c),
        rope_parameters=mappings(full_attention=PARTS, sliding_attention=PARTS),
    ).map(without_shared),
    "minimax_m3_vl": lambda c: st.sampled_from((4, 6, 12)).flatmap(
        lambda turned: experts(
            "num_local_experts",
            intermediate_size=WIDTH,
            dense_intermediate_size=WIDTH,
            shared_intermediate_size=WIDTH,
            routed_scaling_factor=SCALE,
            head_dim=st.just(12),
            rotary_dim=st.just(turned),
            rope_parameters=PLAIN_ROPES.map(lambda rope: {**rope, "partial_rotary_factor": turned / 12}),
            swiglu_limit=st.floats(0.3, 9.0),
            mlp_layer_types=mixed(c),
            index_n_heads=st.just(c["num_key_value_heads"]),
            index_head_dim=st.integers(12, 16),
            index_block_size=st.integers(1, 9),
            index_topk_blocks=st.integers(2, 5),
            index_local_blocks=st.integers(0, 2),
            layer_types=each_of(c, ("full_attention", "minimax_m3_sparse")),
        )
    ),
    "deepseek_v32": lambda c: indexed(c).map(lambda drawn: {k: v for k, v in drawn.items() if k != "indexer_types"}),
    "glm_moe_dsa": indexed,
    "exaone4_5": PLACED["exaone4"],
    "openelm": growing,
    "minicpm": lambda c: mappings(
        embedding_multiplier=SCALE,
        residual_multiplier=SCALE,
        logits_scaling=SCALE,
        attention_multiplier=st.just((c["hidden_size"] // c["num_attention_heads"]) ** -0.5),
    ),
    "minicpm3": lambda c: mappings(
        num_key_value_heads=st.just(c["num_attention_heads"]),
        q_lora_rank=st.none() | st.integers(3, 40),
        kv_lora_rank=st.integers(3, 40),
        qk_nope_head_dim=HEAD_DIM,
        qk_rope_head_dim=HEAD_DIM,
        v_head_dim=st.none() | st.integers(1, 20),
        scale_emb=SCALE,
        scale_depth=st.none() | SCALE,
        dim_model_base=st.none() | st.integers(1, 60),
    ),
}
