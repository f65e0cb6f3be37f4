"""What families with state spaces draw, for `spaces.py`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.helpers.space_parts import FLAG

EPS = st.sampled_from((1e-3, 1e-2))  # a norm multiplies rounding where what it divides is all but zero
RECURRENT, FULL = "linear_attention", "full_attention"


@st.composite
def kinds(draw: st.DrawFn, *others: str) -> list[str]:
    """Of layers: in any order, one at least recurrent and one with attention, without which transformers does not know
    how long a sequence is."""
    some = draw(st.permutations([RECURRENT, *others] * 2))[: draw(st.integers(0, 2))]
    return draw(st.permutations([*some, FULL, RECURRENT]))


@st.composite
def sizes(draw: st.DrawFn, named: tuple[str, ...], inner: int | None = None) -> dict[str, Any]:
    """The heads, their values, groups, state, kernel and biases under these names."""
    heads = draw(st.sampled_from([each for each in range(1, 7) if inner is None or inner % each == 0]))
    values = draw(st.integers(2, 12)) if inner is None else inner // heads
    groups = draw(st.sampled_from([each for each in range(1, heads + 1) if heads % each == 0]))
    more = draw(st.integers(2, 12)), draw(st.integers(2, 5)), draw(FLAG), draw(FLAG)
    return dict(zip(named, (heads, values, groups, *more), strict=True))


MAMBA = ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv", "mamba_conv_bias",
         "mamba_proj_bias")  # fmt: skip
NEMOTRON = ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "use_conv_bias",
            "use_bias")  # fmt: skip
FACTOR = st.floats(0.5, 1.5)


@st.composite
def bamba(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    layers, head_dim = config["num_hidden_layers"], 4 * draw(st.integers(1, 4))
    listed = draw(st.lists(st.integers(0, layers - 1), min_size=1, max_size=2, unique=True))
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    return {
        **draw(sizes(MAMBA, 2 * config["hidden_size"])),
        "rms_norm_eps": draw(EPS),
        "attn_layer_indices": listed,
        "head_dim": head_dim,
        "mlp_bias": draw(FLAG),
        "rope_parameters": rope,
    }


@st.composite
def granite(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    listed, experts = draw(kinds(FULL)), draw(st.sampled_from((0, 3, 5)))
    return {
        **draw(sizes(MAMBA, 2 * config["hidden_size"])),
        "rms_norm_eps": draw(EPS),
        "layer_types": listed,
        "num_hidden_layers": len(listed),
        "num_local_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, 3)),
        "shared_intermediate_size": draw(st.integers(1, 40)),
        "position_embedding_type": draw(st.sampled_from((None, "rope"))),
        "embedding_multiplier": draw(FACTOR),
        "attention_multiplier": draw(FACTOR) / 4,
        "residual_multiplier": draw(FACTOR),
        "logits_scaling": 1 / draw(FACTOR),
    }


@st.composite
def falcon(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    inner = 12 * draw(st.integers(1, 3))
    normed = draw(FLAG)
    return {
        **draw(sizes((*MAMBA[:6], "mlp_bias"), inner)),
        "rms_norm_eps": draw(EPS),
        "num_hidden_layers": draw(st.integers(1, 2)),
        "mamba_d_ssm": inner,
        "mamba_rms_norm": normed,
        "mamba_norm_before_gate": not normed,
        "projectors_bias": False,
        **{f"{part}_multiplier": draw(FACTOR) for part in ("embedding", "lm_head", "key", "ssm_in", "ssm_out")},
        **{f"attention_{part}_multiplier": draw(FACTOR) for part in ("in", "out")},
        "ssm_multipliers": draw(st.lists(FACTOR, min_size=5, max_size=5)),
        "mlp_multipliers": draw(st.lists(FACTOR, min_size=2, max_size=2)),
    }


@st.composite
def nemotron(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    groups, each = draw(st.integers(1, 2)), draw(st.integers(2, 4))
    made = draw(sizes(NEMOTRON))
    return {
        **made,
        "layers_block_type": draw(kinds(FULL, "mlp", "moe")),
        "head_dim": 2 * draw(st.integers(1, 6)),
        "layer_norm_epsilon": draw(EPS),
        "time_step_min": 1e-9,
        "n_routed_experts": groups * each,
        "n_group": groups,
        "topk_group": 1,
        "num_experts_per_tok": draw(st.integers(1, each)),
        "moe_intermediate_size": draw(st.integers(1, 40)),
        "moe_shared_expert_intermediate_size": draw(st.integers(1, 40)),
        "moe_latent_size": draw(st.none() | st.integers(2, 20)),
        "routed_scaling_factor": draw(st.floats(0.5, 3.0)),
        "norm_topk_prob": draw(FLAG),
    }


@st.composite
def mamba2(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    heads, inner = config["num_attention_heads"], 2 * config["hidden_size"]
    groups = draw(st.sampled_from([each for each in range(1, heads + 1) if heads % each == 0]))
    return {
        "num_heads": heads,
        "head_dim": inner // heads,
        "n_groups": groups,
        "state_size": draw(st.integers(2, 12)),
        "conv_kernel": draw(st.integers(2, 5)),
        "use_bias": draw(FLAG),
        "use_conv_bias": draw(FLAG),
        "layer_norm_epsilon": draw(EPS),
    }


STATE = {"nemotron_h": nemotron, "granitemoehybrid": granite, "bamba": bamba, "falcon_h1": falcon, "mamba2": mamba2}
