"""Mistral's own `params.json`, for dense models and Mixtral (github.com/mistralai/mistral-inference).

Heads have the size that `head_dim` says, whatever the width. Absent, `rope_theta` is a million without a window and ten
thousand with one, as in Mistral's first code; an absent `sliding_window` means none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.families.makers.params import NAMES, Params
from minillm.guard.screen import shown

LATENT = "latent attention as in Mistral Large 3, which is not supported in this layout"
REFUSED = {
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), LATENT),
    "quantization": "quantised by Mistral's own tools, which is not read; give an unquantised checkpoint",
    "multimodal": "a model that hears, which is not supported",
    "lora": "an adapter and no model; merge the two",
}
IDLE = ("max_batch_size", "vision_encoder")  # whose tensors are left out, which users are told
ROUTER = {"num_experts", "num_experts_per_tok"}
YARN = {"factor": "factor", "original_max_position_embeddings": "original_max_position_embeddings",
        "beta": "beta_fast", "alpha": "beta_slow"}  # fmt: skip


def config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a checkpoint. Raises ValueError for what no family here is."""
    params = Params(values)
    params.refuse(REFUSED)
    for key in IDLE:
        params.get(key)
    if (kind := params.get("model_type", "transformer")) != "transformer":
        raise ValueError(f"params.json: model_type is {shown(kind)}; transformer is supported")
    sizes, window = params.sizes(), _window(params)
    theta = params.number("rope_theta", 1000000.0 if window is None else 10000.0)
    positions = params.get("max_position_embeddings", params.get("max_seq_len"))
    made = {
        "model_type": "mistral",
        NAMES: "mistral",
        **sizes,
        "head_dim": params.size("head_dim", sizes["hidden_size"] // sizes["num_attention_heads"]),
        "vocab_size": params.size("vocab_size"),
        "intermediate_size": params.size("hidden_dim"),
        "hidden_act": params.get("activation", "silu"),
        "rope_theta": theta,
        "sliding_window": window,
        "tie_word_embeddings": params.flag("tied_embeddings"),
        **({} if positions is None else {"max_position_embeddings": positions}),
        **({} if (dtype := params.get("dtype")) is None else {"dtype": dtype}),
        **_experts(params),
    }
    if scaling := _scaling(params):
        made["rope_scaling"] = scaling
    return {**made, **params.unread()}


def _window(params: Params) -> int | None:
    """One for all layers, which some files write as a text or a list."""
    stated = params.get("sliding_window")
    listed = stated if isinstance(stated, list) else [stated]
    if len(set(map(str, listed))) != 1 or not (listed[0] is None or str(listed[0]).isdecimal()):
        raise ValueError(f"params.json: sliding_window is {shown(stated)}; one number for all layers is supported")
    return None if listed[0] is None else int(listed[0])


def _experts(params: Params) -> dict[str, Any]:
    if not (found := params.get("moe")):
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"params.json: moe is {shown(found)}, expected an object")
    if odd := sorted(key for key, value in found.items() if key not in ROUTER and value):
        raise ValueError(f"params.json: moe has {', '.join(odd)}, as Mistral Large 3, which is not supported")
    counts = Params(found)
    return {
        "model_type": "mixtral",
        "num_local_experts": counts.size("num_experts"),
        "num_experts_per_tok": counts.size("num_experts_per_tok"),
    }


def _scaling(params: Params) -> dict[str, Any] | None:
    """YaRN, with the factor of its scores only where `apply_scale` says so."""
    grows = params.get("llama_4_scaling")
    if grows and not (isinstance(grows, dict) and grows.get("beta") in (0, None)):
        raise ValueError(f"params.json: llama_4_scaling is {shown(grows)}: queries that grow, which is not supported")
    if not (found := params.get("yarn")):
        return None
    if not isinstance(found, dict) or set(found) - {*YARN, "apply_scale"}:
        raise ValueError(f"params.json: yarn is {shown(found)}, expected an object with {', '.join(YARN)}, apply_scale")
    scaled = Params(found)
    factor = {} if scaled.get("apply_scale", True) else {"attention_factor": 1.0}
    return {"rope_type": "yarn", **{to: scaled.get(key) for key, to in YARN.items()}, **factor}
