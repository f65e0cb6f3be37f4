"""The legal space of each family's configurations, for hypothesis to draw from: `FAMILIES` and `configurations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.helpers.hybrid_spaces import gated, hybrid


def ropes(theta: st.SearchStrategy[float]) -> st.SearchStrategy[dict[str, Any]]:
    factor = st.floats(1.0, 8.0)
    original = st.integers(8, 64)
    return st.one_of(
        st.fixed_dictionaries({"rope_type": st.just("default"), "rope_theta": theta}),
        st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": factor, "rope_theta": theta}),
        st.fixed_dictionaries({"rope_type": st.just("dynamic"), "factor": factor, "rope_theta": theta}),
        st.fixed_dictionaries(
            {
                "rope_type": st.just("llama3"),
                "factor": factor,
                "low_freq_factor": st.floats(0.5, 2.0),
                "high_freq_factor": st.floats(2.5, 8.0),
                "original_max_position_embeddings": original,
                "rope_theta": theta,
            }
        ),
        st.fixed_dictionaries(
            {
                "rope_type": st.just("yarn"),
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": st.floats(4.0, 40.0),
                "beta_slow": st.floats(0.5, 3.0),
                "truncate": st.booleans(),
                "rope_theta": theta,
            }
        ),
    )


LATENT_ROPES = st.fixed_dictionaries(
    {
        "rope_type": st.just("yarn"),
        "rope_theta": st.floats(20.0, 1e6),
        "factor": st.floats(1.0, 8.0),
        "original_max_position_embeddings": st.integers(8, 64),
        "mscale": st.floats(0.2, 2.0),
        "mscale_all_dim": st.floats(0.2, 2.0),
    }
) | ropes(st.floats(20.0, 1e6))


def long_ropes(pairs: int) -> st.SearchStrategy[dict[str, Any]]:
    """The two kinds that Phi-3.5-MoE may have; tokens stay below the switch, where transformers' class is right."""
    factors, mscale = st.lists(st.floats(1.0, 8.0), min_size=pairs, max_size=pairs), st.floats(0.5, 2.0)
    long = mappings(
        rope_type=st.just("longrope"),
        rope_theta=st.floats(20.0, 1e6),
        short_factor=factors,
        long_factor=factors,
        short_mscale=mscale,
        long_mscale=mscale,
        original_max_position_embeddings=st.integers(48, 64),
    )
    return long | mappings(rope_type=st.just("default"), rope_theta=st.floats(20.0, 1e6))


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


def mappings(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(strategies)


FLAG, HEAD_DIM, WINDOW = st.booleans(), st.integers(2, 10).map(lambda n: 2 * n), st.integers(1, 30)


def switched(config: dict[str, Any], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Windows as the Qwen families have them."""
    layers = st.integers(1, config["num_hidden_layers"])
    return mappings(use_sliding_window=FLAG, sliding_window=WINDOW, max_window_layers=layers, **more)


@st.composite
def experts(
    draw: st.DrawFn, name: str = "num_experts", most: int = 8, **more: st.SearchStrategy[Any]
) -> dict[str, Any]:
    count = draw(st.integers(2, most))
    return {name: count, "num_experts_per_tok": draw(st.integers(1, count)), **draw(mappings(**more))}


@st.composite
def sparse(draw: st.DrawFn, layers: int, **more: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Experts with a width of their own in some of the layers."""
    return {
        "decoder_sparse_step": draw(st.integers(1, 2)),
        "mlp_only_layers": draw(st.lists(st.integers(0, layers - 1), max_size=1)),
        **draw(experts(moe_intermediate_size=st.integers(1, 40), norm_topk_prob=FLAG, **more)),
    }


@st.composite
def fine(draw: st.DrawFn, layers: int, groups: int = 1, **more: st.SearchStrategy[Any]) -> dict[str, Any]:
    """DeepSeek's experts: some shared, in equal groups of at least two."""
    each, chosen = draw(st.integers(2, 4)), draw(st.integers(1, groups))
    return {
        "n_routed_experts": groups * each,
        "n_group": groups,
        "topk_group": chosen,
        "num_experts_per_tok": draw(st.integers(1, chosen * each)),
        "n_shared_experts": draw(st.integers(1, 3)),
        "moe_intermediate_size": draw(st.integers(1, 40)),
        "first_k_dense_replace": draw(st.integers(0, layers)),
        **draw(mappings(**more)),
    }


@st.composite
def latent(draw: st.DrawFn, layers: int, heads: int, **more: st.SearchStrategy[Any]) -> dict[str, Any]:
    return {
        "num_key_value_heads": heads,
        "q_lora_rank": draw(st.none() | st.integers(3, 40)),
        "kv_lora_rank": 2 * draw(st.integers(2, 20)),  # transformers cannot rotate at an odd offset
        "qk_nope_head_dim": draw(HEAD_DIM),
        "qk_rope_head_dim": draw(HEAD_DIM),
        "v_head_dim": draw(st.integers(1, 20)),
        "attention_bias": draw(FLAG),
        "rope_parameters": draw(LATENT_ROPES),
        **draw(fine(layers, draw(st.integers(1, 3)), routed_scaling_factor=st.floats(0.5, 4.0), **more)),
    }


THETA = st.floats(20.0, 1e6)
# transformers 5.23 looks for `truncate` beside the kinds of layers, not in them, and so never finds it there.
NESTED_ROPES = ropes(THETA).map(lambda rope: {key: rope[key] for key in rope if key != "truncate"})
PLAIN_ROPES = mappings(rope_type=st.just("default"), rope_theta=THETA)
GEMMA_ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "silu")


def layer_types(config: dict[str, Any]) -> st.SearchStrategy[list[str]]:
    layers = config["num_hidden_layers"]
    return st.lists(st.sampled_from(("full_attention", "sliding_attention")), min_size=layers, max_size=layers)


def capped(config: dict[str, Any], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Gemma 2 and 3."""
    return mappings(
        head_dim=HEAD_DIM,
        attention_bias=FLAG,
        query_pre_attn_scalar=st.integers(1, 60),
        sliding_window=WINDOW,
        layer_types=layer_types(config),
        final_logit_softcapping=st.none() | st.floats(0.5, 30.0),
        **{"attn_logit_softcapping": st.none() | st.floats(0.5, 50.0), **more},
    )


def partial_ropes(config: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Of at least one pair of a head and at most all."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    factors = st.integers(1, head_dim // 2).map(lambda pairs: min((2 * pairs + 0.5) / head_dim, 1.0))
    return mappings(rope_type=st.just("default"), rope_theta=THETA, partial_rotary_factor=factors)


def phi3_ropes(config: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    def long(rope: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        pairs = int(head_dim * rope["partial_rotary_factor"]) // 2
        factors = st.lists(st.floats(1.0, 8.0), min_size=pairs, max_size=pairs)
        return mappings(
            **{key: st.just(rope[key]) for key in rope if key != "rope_type"},
            rope_type=st.just("longrope"),
            short_factor=factors,
            long_factor=factors,
        )

    return partial_ropes(config) | partial_ropes(config).flatmap(long)


# From what is drawn for every family to what a family has besides.
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
    "kimi_k2": lambda c: latent(c["num_hidden_layers"], c["num_attention_heads"]),
}
