"""More spaces of `spaces.py`, for the families of `later_rows.py` that stand alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.helpers.space_parts import (
    FLAG,
    HEAD_DIM,
    PLAIN_ROPES,
    WINDOW,
    experts,
    fine,
    latent,
    layer_types,
    mappings,
    partial_ropes,
)

Draws = st.SearchStrategy[dict[str, Any]]


def own(config: dict[str, Any]) -> st.SearchStrategy[int]:
    return st.just(config["hidden_size"] // config["num_attention_heads"])


def mixed(config: dict[str, Any]) -> st.SearchStrategy[list[str]]:
    layers = config["num_hidden_layers"]
    return st.lists(st.sampled_from(("dense", "sparse")), min_size=layers, max_size=layers)


@st.composite
def ernie(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    layers, found = (
        config["num_hidden_layers"],
        draw(experts("moe_num_experts", moe_intermediate_size=st.integers(1, 40))),
    )
    chosen = {"moe_k": found.pop("num_experts_per_tok"), "use_bias": False}
    start = draw(st.integers(0, layers - 1))
    return {
        **found,
        **chosen,
        "moe_num_shared_experts": draw(st.integers(1, 3)),
        "moe_layer_start_index": start,
        "moe_layer_end_index": draw(st.integers(start, layers - 1)),
        "moe_layer_interval": draw(st.integers(1, 2)),
    }


def short(config: dict[str, Any]) -> Draws:
    """Sizes under the names of the first files."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    names |= {"n_positions": "max_position_embeddings", "n_inner": "intermediate_size"}
    config = {**config, "max_position_embeddings": 64}  # beyond which the class has no positions
    own = {key: st.just(config[value]) for key, value in names.items()}
    turned = st.integers(1, head_dim // 2).map(lambda pairs: 2 * pairs)
    absent = dict.fromkeys(("num_key_value_heads", "rope_parameters", "intermediate_size"), st.none())
    positions = st.just(config["max_position_embeddings"])
    return mappings(
        **own, **absent, max_position_embeddings=positions, rotary_dim=turned, tie_word_embeddings=st.just(False)
    )


def grouped(config: dict[str, Any], groups: int = 2, **more: st.SearchStrategy[Any]) -> Draws:
    routed = {"routed_scaling_factor": st.floats(0.5, 4.0), "norm_topk_prob": FLAG}
    return fine(config["num_hidden_layers"], groups, **routed, **more)


@st.composite
def falcon(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    absent = {"num_key_value_heads": None, "intermediate_size": None, "ffn_hidden_size": draw(st.integers(3, 70))}
    if not draw(FLAG):
        return absent
    kv_heads, norms = config["num_key_value_heads"], draw(st.sampled_from((None, 1, 2)))
    grouped = {"new_decoder_architecture": True, "num_kv_heads": kv_heads, "num_ln_in_parallel_attn": norms}
    return {**absent, **grouped}


LATER: dict[str, Callable[[dict[str, Any]], Draws]] = {
    "glm": lambda c: mappings(attention_bias=FLAG, head_dim=own(c), rope_parameters=partial_ropes(c)),
    "glm4": lambda c: mappings(attention_bias=FLAG, head_dim=own(c), rope_parameters=partial_ropes(c)),
    "glm4_moe": lambda c: grouped(c, attention_bias=FLAG, use_qk_norm=FLAG, rope_parameters=partial_ropes(c)),
    "glm4_moe_lite": lambda c: latent(
        c["num_hidden_layers"], c["num_attention_heads"], norm_topk_prob=FLAG, mlp_layer_types=mixed(c)
    ),
    "dots1": lambda c: grouped(
        c,
        attention_bias=FLAG,
        head_dim=HEAD_DIM,
        sliding_window=st.none() | WINDOW,
        max_window_layers=st.integers(0, 2),
    ),
    "solar_open": lambda c: grouped(c, attention_bias=FLAG, head_dim=HEAD_DIM, first_k_dense_replace=st.just(0)),
    "hy_v3": lambda c: experts(
        moe_intermediate_size=st.integers(1, 40),
        num_shared_experts=st.integers(1, 3),
        router_scaling_factor=st.floats(0.5, 4.0),
        head_dim=HEAD_DIM,
        attention_bias=FLAG,
        mlp_layer_types=mixed(c),
    ),
    "minimax_m2": lambda c: experts("num_local_experts", head_dim=st.just(12), rotary_dim=st.sampled_from((4, 6, 12))),
    "ernie4_5": lambda c: mappings(head_dim=HEAD_DIM, use_bias=FLAG),
    "ernie4_5_moe": ernie,
    "seed_oss": lambda c: mappings(head_dim=HEAD_DIM, attention_bias=FLAG, attention_out_bias=FLAG, mlp_bias=FLAG),
    "starcoder2": lambda c: mappings(sliding_window=st.none() | WINDOW, use_bias=FLAG),
    "stablelm": lambda c: mappings(use_qkv_bias=FLAG, use_parallel_residual=FLAG, rope_parameters=partial_ropes(c)),
    "gptj": short,
    "falcon": lambda c: falcon(c),
    "mellum": lambda c: experts(
        moe_intermediate_size=st.integers(1, 40),
        norm_topk_prob=FLAG,
        head_dim=HEAD_DIM,
        attention_bias=FLAG,
        sliding_window=WINDOW,
        layer_types=layer_types(c),
        mlp_layer_types=mixed(c),
        rope_parameters=mappings(full_attention=PLAIN_ROPES, sliding_attention=PLAIN_ROPES),
    ),
    "internlm3": lambda c: FLAG.flatmap(
        lambda bias: mappings(head_dim=HEAD_DIM, attention_bias=st.just(bias), mlp_bias=st.just(bias))
    ),
    "cwm": lambda c: mappings(
        head_dim=HEAD_DIM, mlp_bias=FLAG, sliding_window=WINDOW, layer_types=layer_types(c), bos_token_id=st.just(1000)
    ),
    "helium": lambda c: mappings(head_dim=own(c), attention_bias=FLAG, mlp_bias=FLAG),
    "youtu": lambda c: latent(c["num_hidden_layers"], c["num_attention_heads"], rope_interleave=FLAG),
}
