"""What the spaces of `spaces.py` are made of."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


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
