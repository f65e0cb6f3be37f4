"""The architectures of llama.cpp that families here have, and those values of config.json that are only theirs.

What a file leaves out has llama.cpp's default, not that of the family's config.json; what its graphs have fixed, such
as the window of every second layer, stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.families.gguf import dense, on_device, placed, selective, sparse, states
from minillm.families.gguf.metadata import LONG, SHORT, File, factors, scaling
from minillm.families.gguf.sparse import by_sigmoid
from minillm.families.gguf.sparse import experts as _experts

# What files of mixtures with latent attention say, and those without a mixture too.
ROUTED = ("expert_shared_count", "expert_feed_forward_length", "leading_dense_block_count", "expert_weights_scale",
          "expert_used_count", "expert_gating_func")  # fmt: skip


def _llama(file: File) -> dict[str, Any]:
    bias = {"attention_bias": file.has("blk.0.attn_q.bias"), "mlp_bias": file.has("blk.0.ffn_gate.bias")}
    if not file.get("expert_count", 0):
        file.get("expert_used_count")
        return {"model_type": "llama", **bias}
    used = {"num_local_experts": file.need("expert_count"), "num_experts_per_tok": file.need("expert_used_count")}
    return {"model_type": "mixtral", **used, "sliding_window": None}


def _qwen(kind: str) -> Callable[[File], dict[str, Any]]:
    return lambda file: {"model_type": kind}


def _qwen2_moe(file: File) -> dict[str, Any]:
    shared = file.need("expert_shared_feed_forward_length")
    return {"model_type": "qwen2_moe", **_experts(file), "shared_expert_intermediate_size": shared}


def _qwen3_moe(file: File) -> dict[str, Any]:
    return {"model_type": "qwen3_moe", **_experts(file), "norm_topk_prob": True}


def _reads_images(kind: str) -> Callable[[File], dict[str, Any]]:
    """The text model of one; its file says how positions of images are split, and what is added for them."""

    def values(file: File) -> dict[str, Any]:
        file.asked.update(("rope.dimension_sections", "n_deepstack_layers"))
        return {"model_type": kind, **(_experts(file) if file.get("expert_count", 0) else {})}

    return values


def _seed_oss(file: File) -> dict[str, Any]:
    biases = {"attention_bias": "attn_q", "attention_out_bias": "attn_output", "mlp_bias": "ffn_gate"}
    return {"model_type": "seed_oss", **{key: file.has(f"blk.0.{name}.bias") for key, name in biases.items()}}


def _minimax_m2(file: File) -> dict[str, Any]:
    by_sigmoid(file)
    values = _experts(file, "num_local_experts")
    width, turned = values.pop("moe_intermediate_size"), file.get("rope.dimension_count")
    return {"model_type": "minimax_m2", **values, "intermediate_size": width, "rotary_dim": turned}


def _hybrid(kind: str) -> Callable[[File], dict[str, Any]]:
    """Three of four layers recurrent, whose heads of keys and values are equally wide in llama.cpp."""

    def values(file: File) -> dict[str, Any]:
        file.asked.add("rope.dimension_sections")
        heads, width = file.size("ssm.time_step_rank"), file.size("ssm.inner_size")
        if not heads or width % heads:
            raise ValueError(f"{file.architecture}.ssm.inner_size {width} is no multiple of {heads} heads")
        part = file.size("rope.dimension_count") / (file.size("attention.key_length") or 1)
        made = {
            "model_type": kind,
            "linear_num_key_heads": file.size("ssm.group_count"),
            "linear_num_value_heads": heads,
            "linear_key_head_dim": file.size("ssm.state_size"),
            "linear_value_head_dim": width // heads,
            "linear_conv_kernel_dim": file.size("ssm.conv_kernel"),
            "full_attention_interval": file.size("full_attention_interval", 4),
            "partial_rotary_factor": part,
        }
        if not file.get("expert_count", 0):
            return made
        shared = file.need("expert_shared_feed_forward_length")
        return {**made, **_experts(file), "shared_expert_intermediate_size": shared, "norm_topk_prob": True}

    return values


def _gemma(file: File) -> dict[str, Any]:
    return {"model_type": "gemma"}


def _windowed(file: File, kind: str, window: int, large: int) -> dict[str, Any]:
    """Scores are scaled by the size of a head, but in the largest model, which is known by its layers."""
    own, layers = file.get("attention.key_length"), file.size("block_count")
    scalar = file.head() if layers == large or own is None else own
    return {
        "model_type": kind,
        "query_pre_attn_scalar": scalar,
        "sliding_window": file.get("attention.sliding_window", window),
        "attn_logit_softcapping": file.get("attn_logit_softcapping"),
        "final_logit_softcapping": file.get("final_logit_softcapping"),
    }


def _gemma2(file: File) -> dict[str, Any]:
    values = _windowed(file, "gemma2", 4096, 46)
    capped = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return {**values, **{key: capped[key] for key in capped if values[key] is None}}


def _gemma3(file: File) -> dict[str, Any]:
    local = file.get("rope.freq_base_swa", 10000.0)
    pattern = file.get("attention.sliding_window_pattern", 6)
    return {**_windowed(file, "gemma3_text", 4096, 62), "rope_local_base_freq": local,
            "sliding_window_pattern": pattern}  # fmt: skip


def _phi3(file: File) -> dict[str, Any]:
    head = file.head()
    values = {
        "model_type": "phi3",
        "partial_rotary_factor": file.size("rope.dimension_count", head) / head,
        "sliding_window": file.get("attention.sliding_window") or None,
    }
    if file.has(LONG):
        factor, original = file.get("rope.scaling.attn_factor"), file.get("rope.scaling.original_context_length")
        values["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": factors(file, SHORT),
            "long_factor": factors(file, LONG),
            **({} if factor is None else {"attention_factor": factor}),
        }
        values["original_max_position_embeddings"] = original
    return values


def _phi2(file: File) -> dict[str, Any]:
    head = file.head()
    part = file.size("rope.dimension_count", head) / head
    return {
        "model_type": "phi",
        "layer_norm_eps": file.need("attention.layer_norm_epsilon"),
        "partial_rotary_factor": part,
    }


def _gptneox(file: File) -> dict[str, Any]:
    head = file.head()
    return {
        "model_type": "gpt_neox",
        "layer_norm_eps": file.need("attention.layer_norm_epsilon"),
        "rotary_pct": file.size("rope.dimension_count", head) / head,
        "use_parallel_residual": file.get("use_parallel_residual", True),
    }


def _gpt_oss(file: File) -> dict[str, Any]:
    values = _experts(file, "num_local_experts")
    scaled = scaling(file)
    return {
        "model_type": "gpt_oss",
        **values,
        "intermediate_size": values.pop("moe_intermediate_size"),
        "sliding_window": file.get("attention.sliding_window", 128),
        "rope_scaling": {**scaled, "truncate": False} if scaled else {"rope_type": "default"},
        "attention_bias": file.has("blk.0.attn_q.bias"),
    }


def _olmo(file: File) -> dict[str, Any]:
    if (eps := file.get("attention.layer_norm_epsilon", 1e-5)) != 1e-5:
        raise ValueError(f"{file.architecture}.attention.layer_norm_epsilon is {eps}; this family's is 1e-05")
    return {"model_type": "olmo", "clip_qkv": file.get("attention.clamp_kqv") or None}


def _olmo2(file: File) -> dict[str, Any]:
    if (window := file.get("attention.sliding_window")) is None:
        return {"model_type": "olmo2"}
    file.get("attention.sliding_window_pattern")
    return {"model_type": "olmo3", "sliding_window": window}


def _olmoe(file: File) -> dict[str, Any]:
    used = {"num_experts": file.need("expert_count"), "num_experts_per_tok": file.need("expert_used_count")}
    return {"model_type": "olmoe", **used, "clip_qkv": file.get("attention.clamp_kqv") or None}


def _dbrx(file: File) -> dict[str, Any]:
    return {**_olmo(file), **_olmoe(file), "model_type": "dbrx"}


def _deepseek(file: File) -> dict[str, Any]:
    if (scale := file.get("expert_weights_scale", 1.0) or 1.0) != 1:
        raise ValueError(f"{file.architecture}.expert_weights_scale is {scale}; this family's is 1")
    return {
        "model_type": "deepseek",
        **_experts(file, "n_routed_experts"),
        "n_shared_experts": file.get("expert_shared_count", 0),
        "first_k_dense_replace": file.get("leading_dense_block_count", 0),
        "norm_topk_prob": file.get("expert_weights_norm", False),
    }


def _deepseek2(file: File) -> dict[str, Any]:
    """The version with sigmoid scores is known by the correction of its router; what says neither is the older."""
    if not file.get("expert_count", 0):
        file.asked.update(ROUTED)
        return _latent(file, "youtu")
    gate = file.get("expert_gating_func")
    corrected = any(file.has(f"blk.{i}.exp_probs_b.bias") for i in range(min(file.size("block_count"), 4096)))
    if gate not in ((None, 2) if corrected else (None, 0, 1)):
        raise ValueError(f"{file.architecture}.expert_gating_func is {gate}, which does not go with its tensors")
    groups = {"n_group": file.size("expert_group_count", 1), "topk_group": file.get("expert_group_used_count", 1)}
    limited = {} if corrected else {"topk_method": "group_limited_greedy" if groups["n_group"] > 1 else "greedy"}
    return {
        **_latent(file, "deepseek_v3" if corrected else "deepseek_v2"),
        **_experts(file, "n_routed_experts"),
        "n_shared_experts": file.get("expert_shared_count", 0),
        "first_k_dense_replace": file.get("leading_dense_block_count", 0),
        "routed_scaling_factor": file.get("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": file.get("expert_weights_norm", False),
        **groups,
        **limited,
    }


def _latent(file: File, kind: str) -> dict[str, Any]:
    turned = file.size("rope.dimension_count")
    head = file.size("attention.key_length_mla", 0) or file.size("attention.key_length")
    value = file.size("attention.value_length_mla", 0) or file.size("attention.value_length")
    return {
        "model_type": kind,
        "num_key_value_heads": file.need("attention.head_count"),
        "head_dim": None,
        "q_lora_rank": file.get("attention.q_lora_rank") or None,
        "kv_lora_rank": file.need("attention.kv_lora_rank"),
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": head - turned,
        "v_head_dim": value,
    }


# By what llama.cpp calls them: what makes the values that are no one's but theirs.
ARCHITECTURES: dict[str, Callable[[File], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen("qwen2"),
    "qwen3": _qwen("qwen3"),
    "qwen2moe": _qwen2_moe,
    "qwen3moe": _qwen3_moe,
    "qwen2vl": _reads_images("qwen2_vl"),
    "qwen3vl": _reads_images("qwen3_vl"),
    "qwen3vlmoe": _reads_images("qwen3_vl_moe"),
    "qwen3next": _hybrid("qwen3_next"),
    "qwen35": _hybrid("qwen3_5_text"),
    "qwen35moe": _hybrid("qwen3_5_moe_text"),
    "seed_oss": _seed_oss,
    "minimax-m2": _minimax_m2,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3n": on_device.gemma3n,
    "gemma4": on_device.gemma4,
    "phi3": _phi3,
    "phi2": _phi2,
    "gptneox": _gptneox,
    "gpt-oss": _gpt_oss,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "dbrx": _dbrx,
    "deepseek": _deepseek,
    "deepseek2": _deepseek2,
    **dense.ARCHITECTURES,
    **sparse.ARCHITECTURES,
    **placed.ARCHITECTURES,
    **states.ARCHITECTURES,
    **selective.ARCHITECTURES,
}
ON_DEVICE = ("gemma3n", "gemma4")
HYBRID = ("qwen3next", "qwen35", "qwen35moe")
# That a converter has added to the weights of norms.
NORM_OFFSETS = dict.fromkeys(("gemma", "gemma2", "gemma3", "nemotron", *HYBRID), 1.0)
SCALES_APART = ("gemma4",)  # in which a factor of a router's or an expert's product is a parameter
