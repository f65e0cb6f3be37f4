"""Architectures of llama.cpp whose decoders are a family's of this program under other names, or small changes of it:
what their files say, in the words of that family's config.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.families.gguf.metadata import File, scaling

Values = dict[str, Any]


def turned(file: File) -> float:
    """The part of a head that turns."""
    head = file.size("attention.key_length", 0) or file.head()
    return file.size("rope.dimension_count", head) / (head or 1)


def of_llama(file: File) -> Values:
    """EXAONE 3, Baichuan 7B, InternLM 2: the mathematics of Llama."""
    file.asked.add("tensor_data_layout")
    if file.architecture == "baichuan" and file.size("block_count") == 40:
        raise ValueError("baichuan.block_count is 40, that of the 13B models, whose positions have ALiBi; which is not "
                         "supported")  # fmt: skip
    return {"model_type": "llama"}


def mistral3(file: File) -> Values:
    """Mistral Small 3.1, a Mistral under a name of its own; queries of Ministral 3 grow with their position. What the
    file has for `mscale_all_dim` is that number itself here, not a tenth of it."""
    rope = scaling(file) or {"rope_type": "default"}
    if log := file.get("rope.scaling.yarn_log_multiplier", 0.0):
        rope |= {"mscale": 1.0, "mscale_all_dim": log}
    values = {"model_type": "mistral", "sliding_window": None, "rope_scaling": rope}
    if rate := file.get("attention.temperature_scale", 0.0):
        values |= {"model_type": "ministral3", "rope_scaling": {**rope, "llama_4_scaling_beta": rate}}
    return values


def arcee(file: File) -> Values:
    return {"model_type": "arcee", "attention_bias": False, "mlp_bias": False}


def hunyuan(file: File) -> Values:
    """A converter has put what positions are scaled by into their base."""
    return {"model_type": "hunyuan_v1_dense", "attention_bias": False}


def command_r(file: File) -> Values:
    return {**_cohere(file), "model_type": "cohere", "use_qk_norm": file.has("blk.0.attn_q_norm.weight")}


def cohere2(file: File) -> Values:
    file.asked.add("attention.sliding_window_pattern")
    return {**_cohere(file), "model_type": "cohere2", "sliding_window": file.need("attention.sliding_window")}


def nemotron(file: File) -> Values:
    return {
        "model_type": "nemotron",
        "norm_eps": file.need("attention.layer_norm_epsilon"),
        "partial_rotary_factor": turned(file),
        "attention_bias": file.has("blk.0.attn_q.bias"),
        "mlp_bias": file.has("blk.0.ffn_up.bias"),
    }


def _cohere(file: File) -> Values:
    return {"layer_norm_eps": file.need("attention.layer_norm_epsilon"), "logit_scale": file.need("logit_scale"),
            "attention_bias": False}  # fmt: skip


def qwen(file: File) -> Values:
    """Qwen 1: a file says the width of gate and up together."""
    if (width := file.size("feed_forward_length")) % 2:
        raise ValueError(f"qwen.feed_forward_length {width} is that of two equal parts, and odd")
    return {"model_type": "qwen2", "intermediate_size": width // 2}


def exaone4(file: File) -> Values:
    """Windows are those of the 32B, which is known by its layers."""
    file.asked.update(("attention.sliding_window_pattern", "rope.freq_base_swa"))
    layers = file.size("block_count")
    window = file.get("attention.sliding_window", 4096 if layers == 64 else None)
    return {"model_type": "exaone4", "sliding_window": window, "layer_types": None}


def glm(kind: str) -> Callable[[File], Values]:
    """ChatGLM too is a GLM."""

    def values(file: File) -> Values:
        file.asked.add("rope.dimension_sections")
        bias = file.has("blk.0.attn_q.bias") or file.has("blk.0.attn_qkv.bias")
        return {"model_type": kind, "head_dim": file.get("attention.key_length"), "attention_bias": bias,
                "partial_rotary_factor": turned(file)}  # fmt: skip

    return values


def ernie4_5(file: File) -> Values:
    file.asked.add("rope.dimension_sections")
    return {"model_type": "ernie4_5", "head_dim": file.get("attention.key_length")}


def starcoder2(file: File) -> Values:
    return {
        "model_type": "starcoder2",
        "norm_epsilon": file.need("attention.layer_norm_epsilon"),
        "sliding_window": file.get("attention.sliding_window"),
        "use_bias": file.has("blk.0.attn_output.bias"),
    }


def stablelm(file: File) -> Values:
    """What has no norm before the MLP is parallel, whatever the file says."""
    file.asked.add("use_parallel_residual")
    return {
        "model_type": "stablelm",
        "layer_norm_eps": file.need("attention.layer_norm_epsilon"),
        "partial_rotary_factor": turned(file),
        "use_qkv_bias": file.has("blk.0.attn_q.bias"),
        "qk_layernorm": file.has("blk.0.attn_q_norm.weight"),
        "use_parallel_residual": not file.has("blk.0.ffn_norm.weight"),
    }


def falcon(file: File) -> Values:
    """The 7B; the others have norms and rows in another order, which are not read."""
    if (heads := file.get("attention.head_count_kv", 1)) != 1 or file.has("blk.0.attn_norm_2.weight"):
        raise ValueError(f"falcon.attention.head_count_kv is {heads}; files of the 7B, with 1, are read")
    file.asked.add("tensor_data_layout")
    return {
        "model_type": "falcon",
        "layer_norm_epsilon": file.need("attention.layer_norm_epsilon"),
        "ffn_hidden_size": file.need("feed_forward_length"),
        "intermediate_size": None,
    }


ARCHITECTURES: dict[str, Callable[[File], Values]] = {
    "exaone": of_llama,
    "baichuan": of_llama,
    "internlm2": of_llama,
    "mistral3": mistral3,
    "qwen": qwen,
    "exaone4": exaone4,
    "chatglm": glm("glm"),
    "glm4": glm("glm4"),
    "ernie4_5": ernie4_5,
    "starcoder2": starcoder2,
    "stablelm": stablelm,
    "falcon": falcon,
    "arcee": arcee,
    "hunyuan-dense": hunyuan,
    "command-r": command_r,
    "cohere2": cohere2,
    "nemotron": nemotron,
}
