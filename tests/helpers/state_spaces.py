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


@st.composite
def mamba(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "intermediate_size": draw(st.integers(1, 80)),
        "state_size": draw(st.integers(1, 12)),
        "time_step_rank": draw(st.just("auto") | st.integers(1, 12)),
        "conv_kernel": draw(st.integers(2, 5)),
        "use_bias": draw(FLAG),
        "use_conv_bias": draw(FLAG),
        "layer_norm_epsilon": draw(EPS),
    }


@st.composite
def falcon_mamba(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    return {**draw(mamba(config)), "mixer_rms_eps": draw(EPS)}


@st.composite
def jamba(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    """With a layer of each kind at least, without which transformers does not know how long a sequence is."""
    layers = draw(st.integers(2, 4))
    attends, mixes = draw(st.integers(2, layers)), draw(st.integers(1, 3))
    experts = draw(st.sampled_from((1, 3, 5)))
    return {
        "num_hidden_layers": layers,
        "attn_layer_period": attends,
        "attn_layer_offset": draw(st.integers(0, attends - 1)),
        "expert_layer_period": mixes,
        "expert_layer_offset": draw(st.integers(0, mixes - 1)),
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, min(3, experts))),
        "mamba_expand": draw(st.integers(1, 3)),
        "mamba_d_state": draw(st.integers(2, 12)),
        "mamba_dt_rank": draw(st.just("auto") | st.integers(2, 12)),
        "mamba_d_conv": draw(st.integers(2, 5)),
        "mamba_conv_bias": draw(FLAG),
        "mamba_proj_bias": draw(FLAG),
        "rms_norm_eps": draw(EPS),
    }


@st.composite
def zamba2(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    inner, heads = 2 * config["hidden_size"], config["num_attention_heads"]
    mambas = draw(st.sampled_from([each for each in range(1, 7) if inner % each == 0]))
    kinds = draw(st.permutations([RECURRENT, "hybrid", *["hybrid"] * draw(st.integers(0, 2))]))
    return {
        "layers_block_type": kinds,
        "num_hidden_layers": len(kinds),
        "num_mem_blocks": draw(st.integers(1, 2)),
        "num_key_value_heads": heads,
        "n_mamba_heads": mambas,
        "mamba_ngroups": draw(st.sampled_from([each for each in range(1, mambas + 1) if mambas % each == 0])),
        "mamba_d_state": draw(st.integers(2, 12)),
        "mamba_d_conv": draw(st.integers(2, 5)),
        "use_shared_attention_adapter": draw(FLAG),
        "adapter_rank": draw(st.integers(1, 8)),
        "use_mem_rope": draw(FLAG) if inner // heads % 2 == 0 else False,
        "time_step_min": 1e-9,
        "rms_norm_eps": draw(EPS),
        "tie_word_embeddings": True,
    }


@st.composite
def recurrent_gemma(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    layers = draw(st.integers(2, 3))
    return {
        "hidden_size": 4 * draw(st.integers(1, 3)) * config["num_attention_heads"],  # half of each head turns, in pairs
        "rope_parameters": {"rope_type": "default", "rope_theta": draw(st.floats(20.0, 1e6))},
        "num_hidden_layers": layers,
        "block_types": draw(st.permutations(["recurrent", "attention"])),
        "attention_window_size": draw(st.integers(1, 12)),
        "conv1d_width": draw(st.integers(2, 5)),
        "logits_soft_cap": draw(st.floats(1.0, 30.0)),
        "attention_bias": draw(FLAG),
        "tie_word_embeddings": True,
        "rms_norm_eps": draw(EPS),
    }


STATE = {
    "nemotron_h": nemotron,
    "granitemoehybrid": granite,
    "bamba": bamba,
    "falcon_h1": falcon,
    "mamba2": mamba2,
    "mamba": mamba,
    "falcon_mamba": falcon_mamba,
    "jamba": jamba,
    "zamba2": zamba2,
    "recurrent_gemma": recurrent_gemma,
}
