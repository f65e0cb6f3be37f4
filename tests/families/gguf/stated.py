"""What llama.cpp's converter writes of a config: the metadata of a file, beside the tensors of `converter.py`."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

from minillm.families.gguf.architectures import HYBRID
from tests.families.gguf import state_converter

FIXED = ("gpt2", "starcoder", "bloom", "mpt")  # whose positions are not rotations
WINDOWED = ("gemma2", "gemma3", "gemma3n", "gemma4", "gpt-oss", "mellum", "exaone4", "cohere2")
ON_DEVICE = ("gemma3n", "gemma4")
ROUTED = ("glm4moe", "dots1", "hy_v3", "minimax-m2")
EPSILONS = ("layer_norm_eps", "norm_epsilon", "layer_norm_epsilon", "norm_eps")


def metadata(architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """What a converter writes of a config."""
    rope = {**(values.get("rope_parameters") or {})}
    rope = rope.get("full_attention", rope)
    short = {"n_heads": "num_attention_heads", "d_model": "hidden_size", "n_layers": "num_hidden_layers",
             "max_seq_len": "max_position_embeddings"}  # fmt: skip
    values = {**{short[key]: value for key, value in values.items() if key in short}, **values}
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    head, part = values.get("head_dim") or hidden // heads, rope.get("partial_rotary_factor")
    part = 1 if architecture == "gemma4" else values.get("partial_rotary_factor") if part is None else part
    said: dict[str, Any] = {
        "context_length": values["max_position_embeddings"], "embedding_length": hidden,
        "block_count": values.get("num_hidden_layers"), "feed_forward_length": values.get("intermediate_size")
        or values.get("ffn_hidden_size"),
        "attention.head_count": heads, "attention.head_count_kv": values.get("num_key_value_heads") or heads,
        "attention.key_length": head, "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": values.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": next(filter(None, map(values.get, EPSILONS)), None),
        "rope.freq_base": rope.get("rope_theta") or values.get("rope_theta"), "vocab_size": values["vocab_size"],
        "rope.dimension_count": None if architecture in FIXED else int(head * (part or values.get("rotary_pct") or 1)),
        "expert_count": values.get("num_experts") or values.get("num_local_experts") or values.get("n_routed_experts")
        or values.get("moe_num_experts"),
        "expert_used_count": values.get("num_experts_per_tok") or values.get("moe_k") or values.get("top_k_experts"),
        "expert_feed_forward_length": values.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": values.get("shared_expert_intermediate_size"),
        "attn_logit_softcapping": values.get("attn_logit_softcapping"),
        "final_logit_softcapping": values.get("final_logit_softcapping"),
        "use_parallel_residual": values.get("use_parallel_residual"),
        "attention.clamp_kqv": values.get("clip_qkv"),
        "attention.sliding_window": values.get("sliding_window") if architecture in WINDOWED else None,
    }  # fmt: skip
    if architecture in ("glm4moe", "dots1", "deepseek") or "n_routed_experts" in values:
        said["leading_dense_block_count"] = values.get("first_k_dense_replace", 0)
        said["expert_shared_count"] = values["n_shared_experts"]
        said["expert_weights_norm"] = values["norm_topk_prob"]
    said |= mixture(architecture, values)
    if architecture in state_converter.ARCHITECTURES:
        said |= state_converter.metadata(architecture, values)
    if architecture == "minicpm" or architecture.startswith("granite"):
        said |= {
            "embedding_scale": values["embedding_multiplier"], "residual_scale": values["residual_multiplier"],
            "logit_scale": values["logits_scaling"],
            "attention.scale": None if architecture == "minicpm" else values["attention_multiplier"],
        }  # fmt: skip
    if architecture == "mistral3":
        said["attention.temperature_scale"] = rope.get("llama_4_scaling_beta")
    if architecture in ("command-r", "cohere2"):
        said["logit_scale"] = values["logit_scale"]
    if architecture == "mpt":
        said |= {"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": values["attn_config"]["clip_qkv"]}
    if architecture == "dbrx":
        attention, feed = values["attn_config"], values["ffn_config"]
        said |= {"attention.clamp_kqv": attention["clip_qkv"], "attention.head_count_kv": attention["kv_n_heads"],
                 "attention.layer_norm_epsilon": 1e-5, "feed_forward_length": feed["ffn_hidden_size"],
                 "expert_count": feed["moe_num_experts"], "expert_used_count": feed["moe_top_k"]}  # fmt: skip
    if architecture == "hunyuan-moe":
        said |= {"expert_used_count": values["moe_topk"], "expert_feed_forward_length": values["intermediate_size"],
                 "expert_shared_feed_forward_length": values["intermediate_size"]}  # fmt: skip
    if architecture in ("bloom", "mpt"):
        said["feed_forward_length"] = 4 * values["hidden_size"]
    if architecture in ("falcon", "starcoder"):
        said["attention.head_count_kv"] = 1
    if architecture == "qwen":  # gate and up together
        said["feed_forward_length"] = 2 * values["intermediate_size"]
    if architecture in ON_DEVICE:
        said |= on_device(architecture, values)
    if architecture in ("gpt-oss", "minimax-m2"):
        said["expert_feed_forward_length"] = values["intermediate_size"]
    if rope.get("rope_type") in ("linear", "yarn"):
        said["rope.scaling.type"], said["rope.scaling.factor"] = rope["rope_type"], rope["factor"]
        said["rope.scaling.original_context_length"] = rope.get("original_max_position_embeddings")
        said["rope.scaling.yarn_log_multiplier"] = (
            (1 if architecture == "mistral3" else 0.1) * rope["mscale_all_dim"] if "mscale_all_dim" in rope else None
        )
    if rope.get("rope_type") == "longrope":
        said["rope.scaling.original_context_length"] = values["original_max_position_embeddings"]
        said["rope.scaling.attn_factor"] = rope.get("attention_factor")
    if architecture == "deepseek2" or "n_group" in values:
        said |= {"expert_group_count": values.get("n_group"), "expert_group_used_count": values.get("topk_group")}
    if architecture == "deepseek2":
        nope, turned, inner = (values[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        rank = values["kv_lora_rank"]
        said |= {
            "attention.head_count_kv": 1, "attention.key_length": rank + turned, "attention.value_length": rank,
            "attention.key_length_mla": nope + turned, "attention.value_length_mla": inner,
            "attention.q_lora_rank": values["q_lora_rank"], "attention.kv_lora_rank": rank,
            "rope.dimension_count": turned, "expert_weights_scale": values.get("routed_scaling_factor"),
        }  # fmt: skip
    if architecture in HYBRID:
        said |= {
            "ssm.conv_kernel": values["linear_conv_kernel_dim"], "ssm.state_size": values["linear_key_head_dim"],
            "ssm.group_count": values["linear_num_key_heads"], "ssm.time_step_rank": values["linear_num_value_heads"],
            "ssm.inner_size": values["linear_value_head_dim"] * values["linear_num_value_heads"],
            "full_attention_interval": values["layer_types"].index("full_attention") + 1,
            "rope.dimension_count": int(head * rope.get("partial_rotary_factor", 0.25)),
        }  # fmt: skip
    if "mrope_section" in rope:
        said["rope.dimension_sections"] = [*rope["mrope_section"], 0]
    if architecture in state_converter.ARCHITECTURES:
        said |= state_converter.metadata(architecture, values)
    named = {f"{architecture}.{key}": value for key, value in said.items() if value is not None}
    return {"general.architecture": architecture, "tokenizer.ggml.model": "none", **named}


def mixture(architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """What only some architectures say of their experts."""
    said: dict[str, Any] = {"expert_gating_func": 2} if architecture in ROUTED else {}
    if architecture in ("glm4moe", "dots1"):
        said |= {"expert_weights_scale": float(values["routed_scaling_factor"])}
    width = values.get("moe_intermediate_size")
    if architecture == "hy_v3":
        said |= {"expert_weights_scale": values["router_scaling_factor"], "expert_weights_norm": True,
                 "expert_shared_feed_forward_length": width * values["num_shared_experts"]}  # fmt: skip
    if architecture == "ernie4_5-moe":
        said |= {"interleave_moe_layer_step": 1, "leading_dense_block_count": values["moe_layer_start_index"],
                 "expert_shared_feed_forward_length": width * values["moe_num_shared_experts"]}  # fmt: skip
    if architecture == "mellum":
        said["attention.sliding_window_pattern"] = [each == "sliding_attention" for each in values["layer_types"]]
    return said


def on_device(architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """What differs from layer to layer."""
    slides = [each == "sliding_attention" for each in values["layer_types"]]
    shared = values.get("num_kv_shared_layers") or 0
    said: dict[str, Any] = {
        "attention.shared_kv_layers": shared, "attention.sliding_window_pattern": slides,
        "embedding_length_per_layer_input": values.get("hidden_size_per_layer_input") or 0,
        "rope.freq_base_swa": values["rope_parameters"]["sliding_attention"]["rope_theta"],
        "feed_forward_length": (values["intermediate_size"] if isinstance(values["intermediate_size"], int)
                                else values["intermediate_size"][0]),
    }  # fmt: skip
    if architecture == "gemma3n":
        quantile = {0.95: NormalDist().inv_cdf(0.95), 0.0: float("-inf")}
        said |= {"altup.num_inputs": values["altup_num_inputs"], "altup.active_idx": 0}
        return {**said, "activation_sparsity_scale": [quantile[each] for each in values["activation_sparsity_pattern"]]}
    own = next(iter((values.get("per_layer_config") or {}).values()), {})
    wide, narrow = own.get("head_dim", values.get("global_head_dim")), values["head_dim"]
    heads = [values["num_key_value_heads"], own.get("num_key_value_heads", values["num_key_value_heads"])]
    for suffix, width in (("", wide), ("_swa", narrow)):
        said |= {f"{key}{suffix}": width for key in ("attention.key_length", "attention.value_length",
                                                     "rope.dimension_count")}  # fmt: skip
    if heads[0] != heads[1]:
        said["attention.head_count_kv"] = [heads[0] if each else heads[1] for each in slides]
    if values.get("use_double_wide_mlp"):
        width = values["intermediate_size"]
        said["feed_forward_length"] = [width] * (len(slides) - shared) + [2 * width] * shared
    return said
