"""More spaces of `spaces.py`, for the families of `placed_rows.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.helpers.later_spaces import own
from tests.helpers.space_parts import FLAG, HEAD_DIM, THETA, WINDOW, experts, layer_types, mappings

Draws = st.SearchStrategy[dict[str, Any]]
ABSENT = {key: st.none() for key in ("num_key_value_heads", "intermediate_size", "rope_parameters", "rms_norm_eps")}
LONG = {"max_position_embeddings": st.integers(48, 80)}  # as many positions as tokens are drawn at least
ACTIVATIONS = st.sampled_from(("gelu_new", "gelu", "relu", "silu"))
EPS = st.sampled_from((1e-6, 1e-5, 1e-3))


def factors(**more: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    kinds = ("embedding_multiplier", "residual_multiplier", "logits_scaling")
    made = {kind: st.floats(0.3, 4.0) for kind in kinds}
    return {**made, "attention_multiplier": st.floats(0.05, 1.0), "attention_bias": FLAG, **more}


def learned(**more: st.SearchStrategy[Any]) -> Draws:
    return mappings(**ABSENT, **LONG, activation_function=ACTIVATIONS, layer_norm_epsilon=EPS, **more)


def neo(config: dict[str, Any]) -> Draws:
    layers = config["num_hidden_layers"]
    kinds = st.lists(st.sampled_from(("global", "local")), min_size=layers, max_size=layers)
    types = kinds.map(lambda each: [[each, 1]])
    sizes = {"num_layers": st.just(layers), "num_heads": st.just(config["num_attention_heads"])}
    return learned(**sizes, window_size=WINDOW, attention_types=types)


def warm(config: dict[str, Any]) -> Draws:
    rope = mappings(
        rope_type=st.just("yarn"),
        rope_theta=THETA,
        factor=st.floats(1.0, 8.0),
        original_max_position_embeddings=st.integers(4, 40),
        mscale=st.just(1.0),
        mscale_all_dim=st.just(1.0),
        llama_4_scaling_beta=st.floats(0.05, 1.0),
    )
    return mappings(head_dim=HEAD_DIM, rope_parameters=rope, sliding_window=st.none() | WINDOW)


def turns(config: dict[str, Any]) -> st.SearchStrategy[list[int]]:
    layers = config["num_hidden_layers"]
    return st.lists(st.integers(0, 1), min_size=layers, max_size=layers)


def topk(drawn: dict[str, Any]) -> dict[str, Any]:
    return {"moe_topk": drawn.pop("num_experts_per_tok"), **drawn}


PLACED: dict[str, Callable[[dict[str, Any]], Draws]] = {
    "smollm3": lambda c: mappings(
        no_rope_layers=turns(c), use_sliding_window=FLAG, sliding_window=WINDOW, attention_bias=FLAG, mlp_bias=FLAG
    ),
    "granite": lambda c: mappings(**factors(mlp_bias=FLAG)),
    "granitemoe": lambda c: experts("num_local_experts", **factors()),
    "gpt2": lambda c: learned(),
    "gpt_bigcode": lambda c: learned(multi_query=FLAG),
    "gpt_neo": neo,
    "opt": lambda c: mappings(
        **ABSENT,
        **LONG,
        ffn_dim=st.integers(3, 70),
        activation_function=ACTIVATIONS,
        enable_bias=FLAG,
        layer_norm_elementwise_affine=FLAG,
    ),
    "bloom": lambda c: mappings(**ABSENT, layer_norm_epsilon=EPS),
    "cohere": lambda c: mappings(
        rms_norm_eps=st.none(), use_qk_norm=FLAG, attention_bias=FLAG, logit_scale=st.floats(0.05, 2.0)
    ),
    "cohere2": lambda c: mappings(
        rms_norm_eps=st.none(), sliding_window=WINDOW, layer_types=layer_types(c), logit_scale=st.floats(0.05, 2.0)
    ),
    "apertus": lambda c: mappings(attention_bias=FLAG),
    "arcee": lambda c: mappings(head_dim=HEAD_DIM, attention_bias=FLAG, mlp_bias=FLAG),
    "hunyuan_v1_dense": lambda c: mappings(head_dim=own(c), attention_bias=FLAG),
    "ministral3": warm,
    "exaone_moe": lambda c: experts(
        moe_intermediate_size=st.integers(1, 40),
        num_shared_experts=st.integers(1, 3),
        routed_scaling_factor=st.floats(0.5, 4.0),
        norm_topk_prob=FLAG,
        head_dim=HEAD_DIM,
        sliding_window=WINDOW,
        layer_types=layer_types(c),
        first_k_dense_replace=st.integers(0, c["num_hidden_layers"]),
    ),
    "hunyuan_v1_moe": lambda c: experts(head_dim=own(c), attention_bias=FLAG).map(topk),
    "mpt": lambda c: mappings(
        num_key_value_heads=st.none(),
        intermediate_size=st.none(),
        rms_norm_eps=st.none(),
        max_seq_len=st.just(128),
        max_position_embeddings=st.just(128),
        layer_norm_epsilon=EPS,
        attn_config=mappings(clip_qkv=st.none() | st.floats(0.3, 3.0), softmax_scale=st.none() | st.floats(0.1, 0.6)),
    ),
    "exaone4": lambda c: (
        WINDOW.flatmap(lambda window: mappings(sliding_window=st.just(window), layer_types=layer_types(c)))
        | mappings(sliding_window=st.none(), layer_types=st.just(["full_attention"] * c["num_hidden_layers"]))
    ),
}
