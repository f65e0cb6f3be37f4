"""More spaces of `spaces.py`: text models inside others, and families that transformers has under another name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.helpers.space_parts import (
    FLAG,
    HEAD_DIM,
    PLAIN_ROPES,
    THETA,
    WINDOW,
    latent,
    mappings,
    sparse,
    switched,
)

Draws = st.SearchStrategy[dict[str, Any]]


def sections(head_dim: int) -> Draws:
    """A head's pairs, cut in three for positions of images."""
    ends = st.tuples(*[st.integers(0, head_dim // 2)] * 2).map(sorted)
    return ends.flatmap(
        lambda cut: mappings(
            rope_type=st.just("default"),
            rope_theta=THETA,
            mrope_section=st.just([cut[0], cut[1] - cut[0], head_dim // 2 - cut[1]]),
        )
    )


def own(config: dict[str, Any]) -> int:
    return config["hidden_size"] // config["num_attention_heads"]


def alone(config: dict[str, Any], **more: st.SearchStrategy[Any]) -> Draws:
    """As many heads of keys as of queries."""
    return mappings(num_key_value_heads=st.just(config["num_attention_heads"]), **more)


def interleaved(**more: st.SearchStrategy[Any]) -> Draws:
    ropes = sections(12).map(lambda rope: {**rope, "mrope_interleaved": True})
    return mappings(head_dim=st.just(12), attention_bias=FLAG, rope_parameters=ropes, **more)


WRAPPED: dict[str, Callable[[dict[str, Any]], Draws]] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), lambda c: switched(c, rope_parameters=sections(own(c)))),
    "qwen3_vl": lambda c: interleaved(),
    "qwen3_vl_moe": lambda c: st.builds(
        lambda a, b: {**a, **b, "norm_topk_prob": True, "decoder_sparse_step": 1},
        # transformers turns experts by their shape alone, and none that are square
        sparse(c["num_hidden_layers"]).filter(
            lambda a: c["hidden_size"] not in (a["moe_intermediate_size"], 2 * a["moe_intermediate_size"])
        ),
        interleaved(),
    ),
    "kimi_k25": lambda c: st.builds(  # always with a latent of queries, without which the class cannot be read
        lambda a, rank: {**a, "q_lora_rank": rank},
        latent(c["num_hidden_layers"], c["num_attention_heads"], norm_topk_prob=FLAG),
        st.integers(3, 40),
    ),
    **dict.fromkeys(("mistral3", "llava"), lambda c: mappings(head_dim=HEAD_DIM, sliding_window=st.none() | WINDOW)),
    "qwen2_audio": lambda c: switched(c, rope_parameters=PLAIN_ROPES),
    "exaone": lambda c: mappings(head_dim=HEAD_DIM),
    "qwen": lambda c: alone(c, rope_parameters=PLAIN_ROPES),
    "chatglm": lambda c: mappings(
        head_dim=st.integers(1, 5).map(lambda quarter: 4 * quarter),
        attention_bias=FLAG,
        rope_parameters=PLAIN_ROPES.map(lambda rope: {**rope, "partial_rotary_factor": 0.5}),
    ),
    "mimo": lambda c: mappings(rope_parameters=PLAIN_ROPES),
    "baichuan": lambda c: alone(c, head_dim=st.just(own(c)), rope_parameters=PLAIN_ROPES),
    "internlm2": lambda c: mappings(attention_bias=FLAG),
}
