"""More spaces of `spaces.py`, for the families of `further_rows.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.helpers.further_rows import SEEN
from tests.helpers.later_spaces import mixed
from tests.helpers.placed_spaces import ACTIVATIONS, EPS, factors
from tests.helpers.space_parts import (
    FLAG,
    GEMMA_ACTIVATIONS,
    HEAD_DIM,
    PLAIN_ROPES,
    WINDOW,
    capped,
    experts,
    latent,
    layer_types,
    mappings,
    partial_ropes,
)
from tests.helpers.tail_spaces import SCALE, WIDTH, Draws, indexed


def each(config: dict[str, Any], strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """One for each layer."""
    layers = config["num_hidden_layers"]
    return st.lists(strategy, min_size=layers, max_size=layers)


def swept(config: dict[str, Any], **more: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    """Granite's factors, and windows of layers that turn at speeds of their own."""
    speeds = st.sampled_from((0, 500.0, 90.0))
    rope = PLAIN_ROPES.map(lambda drawn: {**drawn, "rope_theta": 500.0})
    windows = {"sliding_window": WINDOW, "layer_types": layer_types(config), "rope_parameters": rope}
    return factors(**windows, layer_rope_theta=st.none() | each(config, speeds), **more)


@st.composite
def channels(draw: st.DrawFn, config: dict[str, Any], **more: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Layers of both kinds in any order; a mixture in some."""
    kinds = draw(st.permutations(["linear_attention", "full_attention"] * 2))[: draw(st.integers(3, 4))]
    drawn = draw(latent(len(kinds), config["num_attention_heads"], norm_topk_prob=FLAG, **more))
    renamed = {"num_experts": drawn.pop("n_routed_experts"), "num_shared_experts": drawn.pop("n_shared_experts"),
               "num_expert_group": drawn.pop("n_group"), "moe_renormalize": drawn.pop("norm_topk_prob"),
               "num_experts_per_token": drawn.pop("num_experts_per_tok")}  # fmt: skip
    drawn["rope_parameters"] = draw(PLAIN_ROPES)
    return {**drawn, **renamed, "num_hidden_layers": len(kinds), "layer_types": kinds,
            "v_head_dim": drawn["v_head_dim"] or 8, "rms_norm_eps": draw(st.sampled_from((1e-3, 1e-2)))}  # fmt: skip


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda drawn: {key: value for key, value in drawn.items() if key not in names}


def flash(config: dict[str, Any], drawn: dict[str, Any]) -> dict[str, Any]:
    """The same in other words, and with an indexer that leaves all keys."""
    words = {"num_experts": "n_routed_experts", "num_shared_experts": "n_shared_experts", "num_expert_group": "n_group",
             "moe_renormalize": "norm_topk_prob", "num_experts_per_token": "num_experts_per_tok"}  # fmt: skip
    made = {words.get(key, key): value for key, value in drawn.items() if key != "rope_parameters"}
    kinds = ["indexed_attention" if each == "full_attention" else each for each in made["layer_types"]]
    dense = made.pop("first_k_dense_replace")
    feeds = ["dense" if i < dense else "sparse" for i in range(len(kinds))]
    return {**made, "layer_types": kinds, "mlp_layer_types": feeds,
            "q_lora_rank": made["q_lora_rank"] or 8, "qk_rope_head_dim": 0, "index_n_heads": 2, "index_head_dim": 8,
            "index_topk": 96, "indexer_types": ["full"] * len(kinds)}  # fmt: skip


@st.composite
def searched(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    heads, blocks = config["num_attention_heads"], []
    groups = st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])
    for i in range(config["num_hidden_layers"]):
        attention = {"n_heads_in_group": draw(groups), "no_op": bool(i) and draw(FLAG)}  # the first counts positions
        blocks.append({"attention": attention, "ffn": {"ffn_mult": draw(SCALE), "no_op": draw(FLAG)}})
        blocks[-1]["ffn"]["no_op"] &= not attention["no_op"]
    return {"num_key_value_heads": None, "intermediate_size": None, "block_configs": blocks}


@st.composite
def beside(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    """Keys in two sections; the speed of rotation in one of them and where transformers looks for it."""
    mixture, rope = draw(experts("moe_num_experts")), draw(PLAIN_ROPES)
    feed = {
        "moe_num_experts": mixture["moe_num_experts"],
        "moe_top_k": mixture["num_experts_per_tok"],
        "ffn_hidden_size": draw(WIDTH),
        "ffn_act_fn": {"name": draw(st.sampled_from(GEMMA_ACTIVATIONS))},
        "moe_normalize_expert_weights": draw(st.sampled_from((None, 1.0))),
    }
    attention = {
        "kv_n_heads": config["num_key_value_heads"],
        "clip_qkv": draw(st.floats(0.3, 3.0)),  # transformers has no way without
        "rope_theta": rope["rope_theta"],
    }
    left_out = dict.fromkeys(("num_key_value_heads", "intermediate_size", "rms_norm_eps"))
    own = {"d_model": config["hidden_size"], "attn_config": attention, "ffn_config": feed, "rope_parameters": rope}
    return {**left_out, **own, "tie_word_embeddings": False}


FURTHER: dict[str, Callable[[dict[str, Any]], Draws]] = {
    "gpt_neox_japanese": lambda c: mappings(
        num_key_value_heads=st.none(),
        intermediate_size=st.none(),
        rms_norm_eps=st.none(),
        layer_norm_eps=EPS,
        hidden_act=ACTIVATIONS,
        intermediate_multiple_size=st.integers(1, 3),
        rope_parameters=partial_ropes(c),
    ),
    "jais2": lambda c: mappings(layer_norm_eps=EPS, head_dim=HEAD_DIM, attention_bias=FLAG, mlp_bias=FLAG),
    "flex_olmo": lambda c: experts(attention_bias=FLAG, norm_topk_prob=FLAG),
    "ministral": lambda c: mappings(head_dim=HEAD_DIM, sliding_window=WINDOW, layer_types=layer_types(c)),
    "vaultgemma": lambda c: capped(c, hidden_activation=st.sampled_from(GEMMA_ACTIVATIONS)),
    "granitemoeshared": lambda c: experts("num_local_experts", **factors(shared_intermediate_size=st.integers(0, 40))),
    "granite_swa": lambda c: mappings(**swept(c, mlp_bias=FLAG)),
    "granitemoe_swa": lambda c: experts("num_local_experts", **swept(c, shared_intermediate_size=st.integers(0, 40))),
    "cohere2_moe": lambda c: experts(
        rope_theta=st.just(c["rope_parameters"]["rope_theta"]),  # which transformers writes down beside it
        rms_norm_eps=st.none() | EPS,
        head_dim=HEAD_DIM,
        num_shared_experts=st.integers(0, 2),
        shared_expert_combination_strategy=st.sampled_from(("average", "sum")),
        expert_selection_fn=st.sampled_from(("softmax", "sigmoid")),
        norm_topk_prob=FLAG,
        prefix_dense_sliding_window_pattern=st.integers(1, 2),
        prefix_dense_intermediate_size=WIDTH,
        sliding_window=WINDOW,
        layer_types=layer_types(c),
        mlp_layer_types=mixed(c),
        logit_scale=st.floats(0.05, 2.0),
    ),
    "step3p7": lambda c: experts(
        "n_routed_experts",
        moe_intermediate_size=WIDTH,
        share_expert_dim=WIDTH,
        moe_router_scaling_factor=SCALE,
        head_dim=HEAD_DIM,
        attention_bias=FLAG,
        mlp_bias=FLAG,
        num_sliding_attention_heads=st.integers(1, 3).map(lambda n: n * c["num_key_value_heads"]),
        sliding_window=WINDOW,
        layer_types=layer_types(c),
        mlp_layer_types=mixed(c),
        swiglu_limits=each(c, st.sampled_from((0.0, 0.3, 2.0))),
        swiglu_limits_shared=each(c, st.sampled_from((0.0, 0.3, 2.0))),
        rope_parameters=mappings(full_attention=PLAIN_ROPES, sliding_attention=PLAIN_ROPES),
        pad_token_id=st.just(1),
    ),
    "kimi_linear": lambda c: channels(
        c,
        linear_head_dim=st.integers(4, 12),
        linear_num_heads=st.integers(1, 4),
        linear_conv_kernel_dim=st.integers(2, 5),
    ).map(without("rope_parameters")),
    "bailing_hybrid": lambda c: channels(
        c,
        head_dim=st.integers(4, 12),
        short_conv_kernel_size=st.integers(2, 5),
        kda_safe_gate=FLAG,
        kda_lower_bound=st.floats(-6.0, -0.5),
        num_nextn_predict_layers=st.just(0),
    ).map(without("q_lora_rank")),
    "glm5_next": lambda c: channels(
        c,
        linear_head_dim=st.integers(4, 12),
        linear_num_heads=st.integers(1, 4),
        linear_conv_kernel_dim=st.integers(2, 5),
        linear_lower_bound=st.none() | st.floats(-6.0, -0.5),
        swiglu_limit=st.floats(0.3, 9.0),
        hc_mult=st.integers(2, 4),
        hc_sinkhorn_iters=st.integers(1, 6),
    ).map(lambda drawn: flash(c, drawn)),
    "inkling_text": lambda c: experts(
        "n_routed_experts",
        moe_intermediate_size=WIDTH,
        n_shared_experts=st.integers(1, 3),
        route_scale=SCALE,
        logits_mup_width_multiplier=SCALE,
        head_dim=HEAD_DIM,
        swa_head_dim=HEAD_DIM,
        swa_num_attention_heads=st.sampled_from((2, 4, 6)),
        swa_num_key_value_heads=st.sampled_from((1, 2)),
        sliding_window_size=WINDOW,
        d_rel=st.integers(1, 5),
        rel_extent=st.integers(1, 60),
        log_scaling_n_floor=st.none() | st.integers(1, 30),
        log_scaling_alpha=st.floats(0.05, 1.0),
        conv_kernel_size=st.integers(2, 5),
        layer_types=each(c, st.sampled_from(("hybrid", "hybrid_sliding"))),
        tie_word_embeddings=st.just(False),
        rope_parameters=st.none(),
        mlp_layer_types=mixed(c),
    ),
    "hy_v4": lambda c: st.builds(
        lambda drawn, own: {**without("first_k_dense_replace")(drawn), **own},
        indexed(c),
        mappings(
            swiglu_limit=st.floats(0.3, 9.0),
            hc_mult=st.integers(2, 4),
            hc_magnitude=st.floats(0.5, 3.0),
            hc_eps=st.sampled_from((1e-6, 1e-2)),
        ),
    ),
    "phi4_multimodal": lambda c: mappings(
        rope_parameters=partial_ropes(c), sliding_window=st.none() | WINDOW, **{k: st.just(v) for k, v in SEEN.items()}
    ),
    "nemotron-nas": searched,
    "dbrx": beside,
}
FURTHER["inkling_mm_model"] = FURTHER["inkling_text"]
