"""What a GGUF file says of a model, in the words of config.json, for the family that its architecture belongs to.

Sizes stand in the metadata as `<architecture>.<key>`; what llama.cpp's graphs have fixed stands here. A head is tied
where there is no "output.weight", and there are biases where there are tensors of them. What a file leaves out has
llama.cpp's default, not that of the family's config.json. A key that nothing here asks for is passed on under its own
name, so that users are told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

METHOD, NAMES = "gguf", "gguf_names"  # the key that says whose names the tensors have
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
FACTORS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
MAX_FACTORS = 2**16
PLAIN = {"F32": "float32", "F16": "float16"}  # what most of a file is in; blocks are made bfloat16


class Tensors(Protocol):
    """The tensors of a file: their shapes, the values of one, and what the blocks of each kind take in bytes."""

    def shape(self, name: str, /) -> tuple[int, ...] | None: ...
    def values(self, name: str, /) -> list[float]: ...
    def kinds(self) -> Mapping[str, int]: ...


class File:
    """The metadata of an architecture; what was asked for is known afterwards."""

    def __init__(self, metadata: Mapping[str, Any], tensors: Tensors):
        self.architecture = metadata.get("general.architecture")
        self.own = {
            key.removeprefix(f"{self.architecture}."): value
            for key, value in metadata.items()
            if key.startswith(f"{self.architecture}.")
        }
        self.tensors, self.asked = tensors, set[str]()

    def get(self, key: str, default: Any = None) -> Any:
        """A value; one for all layers, where the file lists one for each. Raises ValueError where these differ."""
        self.asked.add(key)
        value = self.own.get(key, default)
        if isinstance(value, np.ndarray):
            if len(value) == 0 or (value != value[0]).any():
                raise ValueError(f"{self.architecture}.{key} differs from layer to layer, which is not supported")
            value = value[0].item()
        return _shortest(value) if isinstance(value, float) else value

    def need(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise ValueError(f"{self.architecture}.{key} is missing; download the file again")
        return value

    def has(self, tensor: str) -> bool:
        return self.tensors.shape(tensor) is not None

    def unread(self) -> dict[str, Any]:
        left = {key: value for key, value in self.own.items() if key not in self.asked}
        return {f"{self.architecture}.{key}": str(value)[:60] for key, value in left.items()}


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to the same fp32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def config(metadata: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The config.json of a file. Raises ValueError for an architecture that no family here has."""
    file = File(metadata, tensors)
    if (make := ARCHITECTURES.get(str(file.architecture))) is None:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"general.architecture is {str(file.architecture)[:40]!r}, supported are {known}")
    section = {
        "quant_method": METHOD,
        "norm_offset": NORM_OFFSETS.get(str(file.architecture), 0.0),
    }
    kinds = tensors.kinds()
    dtype = PLAIN.get(max(kinds, key=lambda kind: kinds[kind]), "bfloat16")
    said = {NAMES: file.architecture, "dtype": dtype, "quantization_config": section}
    return {**_shared(file), **make(file), **said, **file.unread()}


def _shared(file: File) -> dict[str, Any]:
    """What most families call the same."""
    if (table := file.tensors.shape(EMBEDDING)) is None:
        raise ValueError(f"{EMBEDDING} is missing; is this file a whole model that generates text?")
    file.get("vocab_size"), file.get("rope.dimension_count"), file.get("attention.value_length")
    layers, ahead = file.need("block_count"), file.get("nextn_predict_layers", 0)
    values = {
        "vocab_size": table[0],
        "hidden_size": file.need("embedding_length"),
        "intermediate_size": file.need("feed_forward_length"),
        "num_hidden_layers": layers - ahead,
        "num_nextn_predict_layers": ahead or None,
        "num_attention_heads": (heads := file.need("attention.head_count")),
        "num_key_value_heads": file.get("attention.head_count_kv", heads),
        "head_dim": file.get("attention.key_length"),
        "rms_norm_eps": file.get("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": file.need("context_length"),
        "rope_theta": file.get("rope.freq_base", 10000.0),
        "rope_scaling": _scaling(file),
        "tie_word_embeddings": not file.has(HEAD),
    }
    return {key: value for key, value in values.items() if value is not None}


def _scaling(file: File) -> dict[str, Any] | None:
    """Scaled positions: by a rule with numbers, or by a tensor that has a factor for each frequency."""
    kind, factor = file.get("rope.scaling.type", "none"), file.get("rope.scaling.factor")
    file.get("rope.scaling.finetuned")
    original = file.get("rope.scaling.original_context_length")
    if file.has(FACTORS):
        factors = _factors(file, FACTORS)
        whole = file.need("context_length")
        return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0,
                "original_max_position_embeddings": whole}  # fmt: skip
    if kind == "linear" and factor not in (None, 0.0, 1.0):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        mscale = round(file.get("rope.scaling.yarn_log_multiplier", 0.0) / 0.1, 6)
        if (also := file.get("rope.scaling.attn_factor", 1.0)) != 1:
            raise ValueError(
                f"{file.architecture}.rope.scaling.attn_factor is {also}, which is not supported with yarn"
            )
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": file.get("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": file.get("rope.scaling.yarn_beta_slow", 1.0),
            **({"mscale": mscale, "mscale_all_dim": mscale} if mscale else {}),
        }
    if kind not in ("none", "linear", "longrope"):
        raise ValueError(f"{file.architecture}.rope.scaling.type is {kind!r}; none, linear, yarn, longrope are read")
    return None


def _factors(file: File, name: str) -> list[float]:
    shape = file.tensors.shape(name)
    if shape is None or len(shape) != 1 or shape[0] > MAX_FACTORS:
        raise ValueError(f"{name} is {shape and list(shape)}, expected a factor for each frequency of a head")
    return [_shortest(each) for each in file.tensors.values(name)]


def _experts(file: File, name: str = "num_experts") -> dict[str, Any]:
    return {
        name: file.need("expert_count"),
        "num_experts_per_tok": file.need("expert_used_count"),
        "moe_intermediate_size": file.need("expert_feed_forward_length"),
    }


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


def _gemma(file: File) -> dict[str, Any]:
    return {"model_type": "gemma"}


def _windowed(file: File, kind: str, window: int, large: int) -> dict[str, Any]:
    """Scores are scaled by the size of a head, but in the largest model, which is known by its layers."""
    heads, hidden = file.need("attention.head_count"), file.need("embedding_length")
    scalar = hidden // heads if file.need("block_count") == large else file.get("attention.key_length", hidden // heads)
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
    head = file.need("embedding_length") // file.need("attention.head_count")
    values = {
        "model_type": "phi3",
        "partial_rotary_factor": file.get("rope.dimension_count", head) / head,
        "sliding_window": file.get("attention.sliding_window") or None,
    }
    if file.has(LONG):
        factor, original = file.get("rope.scaling.attn_factor"), file.get("rope.scaling.original_context_length")
        values["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": _factors(file, SHORT),
            "long_factor": _factors(file, LONG),
            **({} if factor is None else {"attention_factor": factor}),
        }
        values["original_max_position_embeddings"] = original
    return values


def _phi2(file: File) -> dict[str, Any]:
    head = file.need("embedding_length") // file.need("attention.head_count")
    part = file.get("rope.dimension_count", head) / head
    return {
        "model_type": "phi",
        "layer_norm_eps": file.need("attention.layer_norm_epsilon"),
        "partial_rotary_factor": part,
    }


def _gptneox(file: File) -> dict[str, Any]:
    head = file.need("embedding_length") // file.need("attention.head_count")
    return {
        "model_type": "gpt_neox",
        "layer_norm_eps": file.need("attention.layer_norm_epsilon"),
        "rotary_pct": file.get("rope.dimension_count", head) / head,
        "use_parallel_residual": file.get("use_parallel_residual", True),
    }


def _gpt_oss(file: File) -> dict[str, Any]:
    values = _experts(file, "num_local_experts")
    scaling = _scaling(file)
    return {
        "model_type": "gpt_oss",
        **values,
        "intermediate_size": values.pop("moe_intermediate_size"),
        "sliding_window": file.get("attention.sliding_window", 128),
        "rope_scaling": {**scaling, "truncate": False} if scaling else {"rope_type": "default"},
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
    turned, gate = file.need("rope.dimension_count"), file.get("expert_gating_func")
    head = file.get("attention.key_length_mla") or file.need("attention.key_length")
    value = file.get("attention.value_length_mla") or file.need("attention.value_length")
    corrected = any(file.has(f"blk.{i}.exp_probs_b.bias") for i in range(min(file.need("block_count"), 4096)))
    if gate not in ((None, 2) if corrected else (None, 0, 1)):
        raise ValueError(f"{file.architecture}.expert_gating_func is {gate}, which does not go with its tensors")
    groups = {"n_group": file.get("expert_group_count", 1), "topk_group": file.get("expert_group_used_count", 1)}
    limited = {} if corrected else {"topk_method": "group_limited_greedy" if groups["n_group"] > 1 else "greedy"}
    return {
        "model_type": "deepseek_v3" if corrected else "deepseek_v2",
        "num_key_value_heads": file.need("attention.head_count"),
        "head_dim": None,
        "q_lora_rank": file.get("attention.q_lora_rank"),
        "kv_lora_rank": file.need("attention.kv_lora_rank"),
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": head - turned,
        "v_head_dim": value,
        **_experts(file, "n_routed_experts"),
        "n_shared_experts": file.get("expert_shared_count", 0),
        "first_k_dense_replace": file.get("leading_dense_block_count", 0),
        "routed_scaling_factor": file.get("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": file.get("expert_weights_norm", False),
        **groups,
        **limited,
    }


# By what llama.cpp calls them: what makes the values that are no one's but theirs.
ARCHITECTURES: dict[str, Callable[[File], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen("qwen2"),
    "qwen3": _qwen("qwen3"),
    "qwen2moe": _qwen2_moe,
    "qwen3moe": _qwen3_moe,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "phi2": _phi2,
    "gptneox": _gptneox,
    "gpt-oss": _gpt_oss,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "deepseek": _deepseek,
    "deepseek2": _deepseek2,
}
NORM_OFFSETS = {"gemma": 1.0, "gemma2": 1.0, "gemma3": 1.0}  # that a converter has added to the weights of norms
