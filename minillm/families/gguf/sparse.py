"""Architectures of llama.cpp with mixtures of experts whose scores are sigmoids, or are corrected for the choice: what
their files say, in the words of their families' config.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.families.gguf.dense import turned
from minillm.families.gguf.metadata import File, scaling

Values = dict[str, Any]
SIGMOID = 2  # what llama.cpp calls the scores of a router
MAX_LAYERS = 4096


def experts(file: File, count: str = "num_experts", width: str = "moe_intermediate_size") -> Values:
    return {
        count: file.need("expert_count"),
        "num_experts_per_tok": file.need("expert_used_count"),
        width: file.need("expert_feed_forward_length"),
    }


def by_sigmoid(file: File) -> None:
    """Raise ValueError for scores of another kind."""
    if (gate := file.get("expert_gating_func", SIGMOID)) != SIGMOID:
        raise ValueError(f"{file.architecture}.expert_gating_func is {gate}; this family's is {SIGMOID}")


def routed(kind: str, *own: str) -> Callable[[File], Values]:
    """GLM-4.5 and its like, the first of whose layers are dense; `own` are keys that only this kind has."""

    def values(file: File) -> Values:
        by_sigmoid(file)
        file.asked.add("rope.dimension_sections")
        made = {
            "model_type": kind,
            **experts(file, "n_routed_experts"),
            "n_shared_experts": file.get("expert_shared_count", 0),
            "first_k_dense_replace": file.get("leading_dense_block_count", 0),
            "routed_scaling_factor": file.get("expert_weights_scale", 1.0) or 1.0,
            "norm_topk_prob": file.get("expert_weights_norm", False),
            "n_group": file.size("expert_group_count", 1) or 1,
            "topk_group": file.size("expert_group_used_count", 1) or 1,
        }
        said = {
            "partial_rotary_factor": turned(file),
            "use_qk_norm": file.has("blk.0.attn_q_norm.weight"),
            "attention_bias": file.has("blk.0.attn_q.bias"),
            "sliding_window": None,
        }
        return {**made, **{key: said[key] for key in own}}

    return values


def hy_v3(file: File) -> Values:
    by_sigmoid(file)
    width, layers = file.size("expert_feed_forward_length"), file.size("block_count", 0)
    shared = file.size("expert_shared_feed_forward_length", width)
    if not width or shared % width:
        raise ValueError(f"hy_v3.expert_shared_feed_forward_length {shared} is no multiple of {width} of one expert")
    if file.get("expert_weights_norm", False) is not True:
        raise ValueError("hy_v3.expert_weights_norm is not true; this family divides weights by their sum")
    kinds = ["sparse" if file.has(f"blk.{i}.ffn_gate_inp.weight") else "dense" for i in range(min(layers, MAX_LAYERS))]
    return {
        "model_type": "hy_v3",
        **experts(file),
        "num_shared_experts": shared // width,
        "router_scaling_factor": file.get("expert_weights_scale", 1.0) or 1.0,
        "mlp_layer_types": kinds[: layers - file.size("nextn_predict_layers", 0)],
    }


def hunyuan_moe(file: File) -> Values:
    """A converter has put what positions are scaled by into their base."""
    made, width = experts(file), file.size("expert_feed_forward_length")
    if (shared := file.size("expert_shared_feed_forward_length", width)) != width:
        raise ValueError(f"hunyuan-moe.expert_shared_feed_forward_length is {shared}; this family's is that of others")
    return {
        "model_type": "hunyuan_v1_moe",
        "attention_bias": False,
        "num_experts": made["num_experts"],
        "moe_topk": made["num_experts_per_tok"],
        "intermediate_size": width,
    }


def ernie4_5_moe(file: File) -> Values:
    made, shared = experts(file, "moe_num_experts"), file.size("expert_shared_feed_forward_length", 0)
    file.asked.update(("rope.dimension_sections", "expert_shared_count"))
    width = file.size("expert_feed_forward_length")
    if not width or shared % width:
        raise ValueError(f"ernie4_5-moe.expert_shared_feed_forward_length {shared} is no multiple of {width}")
    return {
        "model_type": "ernie4_5_moe",
        **made,
        "moe_k": made.pop("num_experts_per_tok"),
        "moe_num_shared_experts": shared // width,
        "moe_layer_start_index": file.get("leading_dense_block_count", 0),
        "moe_layer_interval": file.get("interleave_moe_layer_step", 1),
    }


def mellum(file: File) -> Values:
    """Positions of layers with a window have the same base, and no scaling."""
    layers, slides = file.size("block_count"), file.each("attention.sliding_window_pattern")
    window, base = file.get("attention.sliding_window"), file.get("rope.freq_base", 10000.0)
    if slides is None or len(slides) != layers:
        slides = [(i + 1) % (slides[0] if slides else 4) != 0 for i in range(layers)]
    file.asked.add("rope.freq_base_swa")
    ropes = {"full_attention": scaling(file) or {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
    return {
        "model_type": "mellum",
        **experts(file),
        "sliding_window": window,
        "layer_types": ["sliding_attention" if each and window else "full_attention" for each in slides],
        "rope_parameters": {kind: {**rope, "rope_theta": base} for kind, rope in ropes.items()},
        "rope_scaling": None,
    }


ARCHITECTURES: dict[str, Callable[[File], Values]] = {
    "glm4moe": routed("glm4_moe", "partial_rotary_factor", "use_qk_norm", "attention_bias"),
    "dots1": routed("dots1", "sliding_window"),
    "hy_v3": hy_v3,
    "ernie4_5-moe": ernie4_5_moe,
    "mellum": mellum,
    "hunyuan-moe": hunyuan_moe,
}
