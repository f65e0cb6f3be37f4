"""The legal space of each family's configurations, for hypothesis to draw from: `FAMILIES` and `configurations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.helpers import compressed_cases, gemma_spaces
from tests.helpers.further_spaces import FURTHER
from tests.helpers.hybrid_spaces import convolved, gated, hybrid
from tests.helpers.later_spaces import LATER
from tests.helpers.placed_spaces import PLACED
from tests.helpers.space_parts import (
    FLAG,
    GEMMA_ACTIVATIONS,
    HEAD_DIM,
    NESTED_ROPES,
    PLAIN_ROPES,
    WINDOW,
    capped,
    experts,
    fine,
    latent,
    layer_types,
    long_ropes,
    mappings,
    partial_ropes,
    phi3_ropes,
    ropes,
    sparse,
    switched,
)
from tests.helpers.state_spaces import STATE
from tests.helpers.tail_spaces import TAIL
from tests.helpers.wrapped_spaces import WRAPPED


@st.composite
def configurations(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """What every family has, and then what this one has besides."""
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    config: dict[str, Any] = {
        "vocab_size": draw(st.integers(11, 130)),
        "hidden_size": heads * draw(st.integers(2, 10)) * 2,
        "intermediate_size": draw(st.integers(3, 70)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": draw(st.integers(20, 80)),
        "rms_norm_eps": draw(st.sampled_from((1e-6, 1e-5, 1e-3))),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": draw(ropes(st.floats(20.0, 1e6))),
    }
    return {**config, **draw(FAMILIES[family](config))}


# From what is drawn for every family to what a family has besides.
PARTLY = PLAIN_ROPES | st.just({"rope_type": "proportional", "rope_theta": 90.0, "partial_rotary_factor": 0.5})

FAMILIES: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[dict[str, Any]]]] = {
    "llama": lambda c: mappings(head_dim=HEAD_DIM, mlp_bias=FLAG, attention_bias=FLAG),
    "mistral": lambda c: mappings(head_dim=HEAD_DIM, sliding_window=st.none() | WINDOW),
    "qwen2": switched,
    "qwen3": lambda c: switched(c, head_dim=HEAD_DIM, attention_bias=FLAG),
    "gemma": lambda c: mappings(head_dim=HEAD_DIM, attention_bias=FLAG, hidden_act=st.sampled_from(GEMMA_ACTIVATIONS)),
    "gemma2": lambda c: capped(c),
    "gemma3_text": lambda c: capped(
        c,
        rope_parameters=mappings(full_attention=NESTED_ROPES, sliding_attention=PLAIN_ROPES),
        attn_logit_softcapping=st.none(),
    ),
    "gemma3n_text": gemma_spaces.streams,
    "gemma4_text": gemma_spaces.small,
    "gemma4_unified_text": gemma_spaces.shared,
    "phi": lambda c: mappings(qk_layernorm=FLAG, rope_parameters=partial_ropes(c), tie_word_embeddings=st.just(False)),
    "phi3": lambda c: mappings(
        original_max_position_embeddings=st.integers(48, 64),
        max_position_embeddings=st.integers(64, 80),
        rope_parameters=phi3_ropes(c),
        sliding_window=st.none() | WINDOW,
    ),
    "olmo": lambda c: mappings(attention_bias=FLAG, clip_qkv=st.none() | st.floats(0.3, 3.0)),
    "olmo2": lambda c: mappings(attention_bias=FLAG),
    "olmo3": lambda c: mappings(
        attention_bias=FLAG,
        sliding_window=WINDOW,
        layer_types=layer_types(c),
        rope_parameters=mappings(full_attention=NESTED_ROPES, sliding_attention=PLAIN_ROPES),
    ),
    "gpt_neox": lambda c: mappings(use_parallel_residual=FLAG, attention_bias=FLAG, rope_parameters=partial_ropes(c)),
    "plamo": lambda c: mappings(n_shared_head=st.just(c["num_attention_heads"] // c["num_key_value_heads"])),
    "plamo3": lambda c: mappings(
        head_dim=HEAD_DIM,
        sliding_window=WINDOW,
        layer_types=layer_types(c),
        rope_parameters=mappings(full_attention=NESTED_ROPES, sliding_attention=PLAIN_ROPES),
    ),
    "gpt_oss": lambda c: experts(
        "num_local_experts",
        head_dim=HEAD_DIM,
        sliding_window=WINDOW,
        layer_types=layer_types(c),
        attention_bias=FLAG,
        swiglu_limit=st.floats(0.3, 9.0),
        swiglu_alpha=st.floats(0.5, 3.0),
    ),
    "mixtral": lambda c: experts("num_local_experts", head_dim=HEAD_DIM, sliding_window=st.none() | WINDOW),
    "tanuki": lambda c: experts("num_local_experts", head_dim=HEAD_DIM),
    "qwen2_moe": lambda c: st.builds(
        lambda a, b: {**a, **b},
        switched(c, qkv_bias=FLAG, shared_expert_intermediate_size=st.integers(1, 40)),
        sparse(c["num_hidden_layers"]),
    ),
    "qwen3_moe": lambda c: sparse(c["num_hidden_layers"], head_dim=HEAD_DIM, attention_bias=FLAG),
    "olmoe": lambda c: experts(norm_topk_prob=FLAG, attention_bias=FLAG, clip_qkv=st.none() | st.floats(0.3, 3.0)),
    "phimoe": lambda c: mappings(
        rope_parameters=long_ropes(c["hidden_size"] // c["num_attention_heads"] // 2),
        num_local_experts=st.integers(2, 6),
        num_experts_per_tok=st.just(2),
        router_jitter_noise=st.just(0.0) | st.floats(1e-3, 0.4),
        attention_bias=FLAG,
        lm_head_bias=FLAG,
        tie_word_embeddings=st.just(False),
        sliding_window=st.none() | WINDOW,
    ),
    "deepseek": lambda c: fine(c["num_hidden_layers"], norm_topk_prob=FLAG, tie_word_embeddings=st.just(False)),
    "deepseek_v2": lambda c: latent(
        c["num_hidden_layers"],
        c["num_attention_heads"],
        topk_method=st.sampled_from(("greedy", "group_limited_greedy")),
    ),
    "deepseek_v3": lambda c: latent(
        c["num_hidden_layers"], c["num_attention_heads"], norm_topk_prob=FLAG, rope_interleave=FLAG
    ),
    "qwen3_next": lambda c: st.builds(
        lambda a, b: {**b, **a, "mlp_only_layers": None},
        gated(c, shared_expert_intermediate_size=st.integers(1, 40)),
        sparse(c["num_hidden_layers"]),
    ),
    "qwen3_5_text": lambda c: gated(c),
    "qwen3_5_moe_text": lambda c: st.builds(
        lambda a, b: {**a, **b},
        gated(c, shared_expert_intermediate_size=st.integers(1, 40)),
        experts(moe_intermediate_size=st.integers(1, 40)),
    ),
    "olmo_hybrid": lambda c: hybrid(c, attention_bias=FLAG, linear_allow_neg_eigval=FLAG),
    "lfm2": lambda c: convolved(
        c,
        block_auto_adjust_ff_dim=FLAG,
        block_ffn_dim_multiplier=st.floats(0.5, 2.0),
        block_multiple_of=st.integers(1, 20),
    ),
    "lfm2_moe": lambda c: st.builds(
        lambda a, b: {**a, **b},
        convolved(c, num_dense_layers=st.integers(0, 2), use_expert_bias=FLAG, routed_scaling_factor=st.floats(0.5, 3)),
        experts(moe_intermediate_size=st.integers(1, 40), norm_topk_prob=FLAG),
    ),
    "lfm3": lambda c: mappings(
        head_dim=HEAD_DIM,
        attention_bias=FLAG,
        conv_L_cache=st.integers(2, 8),
        sliding_window=WINDOW,
        use_sandwich_norm=FLAG,
        use_attention_gate=FLAG,
        rope_parameters=mappings(full_attention=PARTLY, sliding_attention=PLAIN_ROPES),
        layer_types=st.lists(
            st.sampled_from(("conv", "full_attention", "sliding_attention")),
            min_size=c["num_hidden_layers"],
            max_size=c["num_hidden_layers"],
        ).filter(lambda kinds: set(kinds) != {"conv"}),
    ),
    "kimi_k2": lambda c: latent(c["num_hidden_layers"], c["num_attention_heads"]),
    **LATER,
    **WRAPPED,
    **PLACED,
    **STATE,
    **TAIL,
    **FURTHER,
    **compressed_cases.SPACES,
}
