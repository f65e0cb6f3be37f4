"""Architectures of llama.cpp whose positions are learned, weaken scores or are none in some layers, and such as have
factors: what their files say, in the words of their families' config.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.families.gguf.metadata import LONG, SHORT, File, factors

Values = dict[str, Any]
NOTHING_TURNS = {"rope_theta": None, "rope_scaling": None}
SCALED = ("granite", "granitemoe", "granitehybrid", "minicpm")


def gpt2(file: File) -> Values:
    return {"model_type": "gpt2", "layer_norm_epsilon": file.need("attention.layer_norm_epsilon"), **NOTHING_TURNS}


def starcoder(file: File) -> Values:
    if (heads := file.get("attention.head_count_kv", 1)) != 1:
        raise ValueError(f"starcoder.attention.head_count_kv is {heads}; all heads of this family share one")
    return {
        "model_type": "gpt_bigcode",
        "layer_norm_epsilon": file.need("attention.layer_norm_epsilon"),
        "num_key_value_heads": 1,
        **NOTHING_TURNS,
    }


def bloom(file: File) -> Values:
    if (width := file.size("feed_forward_length")) != 4 * file.size("embedding_length"):
        raise ValueError(f"bloom.feed_forward_length is {width}; this family's is four times the embedding_length")
    return {
        "model_type": "bloom",
        "layer_norm_epsilon": file.need("attention.layer_norm_epsilon"),
        "intermediate_size": None,
        **NOTHING_TURNS,
    }


def mpt(file: File) -> Values:
    if (most := file.get("attention.max_alibi_bias", 8.0)) != 8:
        raise ValueError(f"mpt.attention.max_alibi_bias is {most}; this family's is 8")
    if (width := file.size("feed_forward_length")) != 4 * file.size("embedding_length"):
        raise ValueError(f"mpt.feed_forward_length is {width}; this family's is four times the embedding_length")
    return {
        "model_type": "mpt",
        "layer_norm_epsilon": file.need("attention.layer_norm_epsilon"),
        "clip_qkv": file.get("attention.clamp_kqv") or None,
        "intermediate_size": None,
        **NOTHING_TURNS,
    }


def minicpm(file: File) -> Values:
    layers, hidden = file.size("block_count"), file.size("embedding_length")
    values = {
        "model_type": "minicpm",
        "scale_emb": file.get("embedding_scale", 12.0),
        "scale_depth": file.get("residual_scale", 1.4 / (layers or 1) ** 0.5) * layers**0.5,
        "dim_model_base": hidden / (file.get("logit_scale", hidden / 256) or 1.0),
    }
    if file.has(LONG):
        factor = file.get("rope.scaling.attn_factor", 1.0)
        values["rope_scaling"] = {
            "rope_type": "longrope", "short_factor": factors(file, SHORT), "long_factor": factors(file, LONG),
            "original_max_position_embeddings": file.need("rope.scaling.original_context_length"),
            "attention_factor": factor,
        }  # fmt: skip
    return values


def smollm3(file: File) -> Values:
    return {"model_type": "smollm3", "attention_bias": file.has("blk.0.attn_q.bias"),
            "mlp_bias": file.has("blk.0.ffn_gate.bias")}  # fmt: skip


def granite(file: File) -> Values:
    head = file.get("attention.key_length") or file.head()
    values = {
        "embedding_multiplier": file.get("embedding_scale", 1.0),
        "attention_multiplier": file.get("attention.scale", 0.0) or head**-0.5,
        "residual_multiplier": file.get("residual_scale", 1.0),
        "logits_scaling": file.get("logit_scale", 1.0),
        "attention_bias": file.has("blk.0.attn_q.bias"),
    }
    if not file.get("expert_count", 0):
        return {"model_type": "granite", **values, "mlp_bias": file.has("blk.0.ffn_gate.bias")}
    if shared := file.get("expert_shared_feed_forward_length", 0):
        raise ValueError(f"{file.architecture}.expert_shared_feed_forward_length is {shared}; this family shares none")
    used = {"num_local_experts": file.need("expert_count"), "num_experts_per_tok": file.need("expert_used_count")}
    return {"model_type": "granitemoe", **values, **used}


ARCHITECTURES: dict[str, Callable[[File], Values]] = {
    "gpt2": gpt2,
    "starcoder": starcoder,
    "bloom": bloom,
    "mpt": mpt,
    "minicpm": minicpm,
    "smollm3": smollm3,
    "granite": granite,
    "granitemoe": granite,
}
