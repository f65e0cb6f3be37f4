"""A decoder in the metadata of a GGUF file: what `gguf_config.py` reads, the other way round.

Everything is written, also what llama.cpp has the same default for. What it computes of an architecture is fixed, and
`difference` tells where a decoder is another one than a file of it would be.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minillm.families.gguf.metadata import FACTORS, LONG, SHORT
from minillm.spec import (
    GQA,
    MLA,
    Decoder,
    GatedDeltaNet,
    LayerNorm,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MoE,
    Rope,
    YarnScaling,
)

FAMILIES = {  # model_type -> architecture
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3",
    "gemma3_text": "gemma3", "phi": "phi2", "phi3": "phi3", "gpt_neox": "gptneox", "gpt_oss": "gpt-oss",
    "olmo": "olmo", "olmo2": "olmo2", "olmo3": "olmo2", "olmoe": "olmoe", "deepseek": "deepseek",
    "qwen3_next": "qwen3next", "qwen3_5": "qwen35", "qwen3_5_text": "qwen35", "qwen3_5_moe": "qwen35moe",
    "qwen3_5_moe_text": "qwen35moe", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "kimi_k2": "deepseek2",
}  # fmt: skip
# Whose experts have a width of their own.
FINE = ("qwen2moe", "qwen3moe", "qwen3next", "qwen35moe", "gpt-oss", "deepseek", "deepseek2")
SHARED = ("deepseek", "deepseek2")  # with experts that every token goes to
SOFTMAX, SIGMOID = 1, 2  # what llama.cpp calls the scores of a router


def architecture(values: Mapping[str, Any]) -> str:
    """What llama.cpp calls the family of a config.json. Raises ValueError where it has none that is read here."""
    if (found := FAMILIES.get(str(values.get("model_type")))) is None:
        known = ", ".join(FAMILIES)
        raise ValueError(f"no GGUF architecture is known here for model_type {values.get('model_type')!r}; "
                         f"written are {known}")  # fmt: skip
    return found


def metadata(decoder: Decoder, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of an architecture says of a decoder; of its config's `values` come the positions before any scaling,
    and a width that mixtures leave unused."""
    attention, norm = decoder.attentions[0], decoder.final_norm
    positions = values.get("max_position_embeddings")
    epsilon = "attention.layer_norm_epsilon" if isinstance(norm, LayerNorm) else "attention.layer_norm_rms_epsilon"
    said = {
        "vocab_size": decoder.vocab_size,
        "context_length": positions if type(positions) is int else decoder.context,
        "embedding_length": decoder.hidden_size,
        "block_count": len(decoder.layers),
        epsilon: float(norm.eps),
        **_widths(decoder, name, values),
        **(_latent(attention) if isinstance(attention, MLA) else _grouped(attention)),
        **_windows(decoder, name),
        **_recurrent(decoder, name),
        **_positions(decoder),
        "final_logit_softcapping": decoder.logit_softcap,
        "use_parallel_residual": decoder.layers[0].parallel if name == "gptneox" else None,
    }
    described = {f"{name}.{key}": value for key, value in said.items() if value is not None}
    return {"general.architecture": name, **described}


def factors(decoder: Decoder, of_scaling: Sequence[float] | None) -> dict[str, Sequence[float]]:
    """The tensors that have a factor for each frequency; `of_scaling` are those that a rule of scaling amounts to."""
    scaling = _everywhere(decoder).scaling
    if isinstance(scaling, Llama3Scaling) and of_scaling:
        return {FACTORS: of_scaling}
    if not isinstance(scaling, LongRopeScaling):
        return {}
    if scaling == _constant(scaling.short_factors, decoder.context):
        return {FACTORS: scaling.short_factors}
    return {LONG: scaling.long_factors, SHORT: scaling.short_factors}


def difference(decoder: Decoder, read: Decoder, of_scaling: Sequence[float] | None) -> str | None:
    """Where a decoder is another one than what a file of it is read as; None where it is not."""
    wanted = decoder
    if isinstance(_everywhere(decoder).scaling, Llama3Scaling) and of_scaling:
        same = _constant(tuple(of_scaling), decoder.context)
        layers = tuple(
            dataclasses.replace(layer, attention=dataclasses.replace(each, rope=_scaled(each, same)))
            for layer, each in zip(decoder.layers, decoder.attentions, strict=True)
        )
        wanted = dataclasses.replace(decoder, layers=layers)
    return _unlike(wanted, read, "")


def _scaled(attention: GQA | MLA, scaling: LongRopeScaling) -> Rope:
    return dataclasses.replace(_rope(attention), scaling=scaling)


def _rope(attention: GQA | MLA) -> Rope:
    assert attention.rope is not None, "every architecture written here turns its keys"
    return attention.rope


def _constant(of_all: tuple[float, ...], context: int) -> LongRopeScaling:
    """What `gguf_metadata.scaling` reads factors for every length as."""
    return LongRopeScaling(of_all, of_all, context, 1.0, 1.0)


def _everywhere(decoder: Decoder) -> Rope:
    """The positions of layers that see everything."""
    layers = decoder.attentions
    return _rope(next((each for each in layers if each.window is None), layers[0]))


def _widths(decoder: Decoder, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    ffns = [layer.ffn for layer in decoder.layers]
    moe = next((each for each in ffns if isinstance(each, MoE)), None)
    stated = values.get("intermediate_size")
    said: dict[str, Any] = {"feed_forward_length": stated if type(stated) is int else ffns[0].intermediate_size}
    if moe is None:
        return said
    router, shared = moe.router, moe.shared
    said |= {"expert_count": router.num_experts, "expert_used_count": router.top_k}
    if name in FINE:
        said["expert_feed_forward_length"] = moe.intermediate_size
    if moe.shared_gate and shared:
        said["expert_shared_feed_forward_length"] = shared.intermediate_size
    if name in SHARED:
        said |= {
            "leading_dense_block_count": next(i for i, each in enumerate(ffns) if isinstance(each, MoE)),
            "expert_shared_count": shared.intermediate_size // moe.intermediate_size if shared else 0,
            "expert_weights_scale": float(router.scale),
            "expert_weights_norm": router.renormalize,
        }
    if name == "deepseek2":
        said["expert_gating_func"] = SIGMOID if router.score == "sigmoid" else SOFTMAX
        said |= {"expert_group_count": router.num_groups, "expert_group_used_count": router.top_groups}
    return said


def _grouped(attention: GQA) -> dict[str, Any]:
    return {
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.num_kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "rope.dimension_count": _rope(attention).dim,
        "attn_logit_softcapping": attention.scores.softcap,
        "attention.clamp_kqv": attention.clip,
    }


def _latent(attention: MLA) -> dict[str, Any]:
    """llama.cpp computes with the latents: one key and value of all heads, `…_mla` are those of a head."""
    turned = attention.rope.dim
    return {
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": 1,
        "attention.key_length": attention.kv_rank + turned,
        "attention.value_length": attention.kv_rank,
        "attention.key_length_mla": attention.nope_dim + turned,
        "attention.value_length_mla": attention.v_dim,
        "attention.q_lora_rank": attention.q_rank or 0,
        "attention.kv_lora_rank": attention.kv_rank,
        "rope.dimension_count": turned,
    }


def _recurrent(decoder: Decoder, name: str) -> dict[str, Any]:
    mixers = [layer.attention for layer in decoder.layers]
    net = next((each for each in mixers if isinstance(each, GatedDeltaNet)), None)
    if net is None:
        return {}
    half = _everywhere(decoder).dim // 2
    sections = [(half + 2) // 3, (half + 1) // 3, half // 3, 0]  # of pairs that an image's three positions turn
    return {
        "ssm.conv_kernel": net.conv_kernel,
        "ssm.state_size": net.k_dim,
        "ssm.group_count": net.num_k_heads,
        "ssm.time_step_rank": net.num_v_heads,
        "ssm.inner_size": net.num_v_heads * net.v_dim,
        "full_attention_interval": next(i for i, each in enumerate(mixers, 1) if isinstance(each, GQA)),
        "rope.dimension_sections": np.array(sections, np.int32) if name != "qwen3next" else None,
    }


def _windows(decoder: Decoder, name: str) -> dict[str, Any]:
    windows = [each.window for each in decoder.attentions]
    if not any(windows):
        return {}
    said: dict[str, Any] = {"attention.sliding_window": next(filter(None, windows))}
    if name == "gemma3":
        local = next(each for each in decoder.attentions if each.window)
        said["rope.freq_base_swa"] = float(_rope(local).theta)
        if None in windows:
            said["attention.sliding_window_pattern"] = windows.index(None) + 1
    return said


def _positions(decoder: Decoder) -> dict[str, Any]:
    rope, attention = _everywhere(decoder), decoder.attentions[0]
    said: dict[str, Any] = {"rope.freq_base": float(rope.theta)}
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        return {**said, "rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    if isinstance(scaling, YarnScaling):
        said |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(scaling.factor),
            "rope.scaling.original_context_length": scaling.original_positions,
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        }
        if isinstance(attention, MLA) and scaling.factor > 1:  # 0.1 times mscale_all_dim
            said["rope.scaling.yarn_log_multiplier"] = (math.sqrt(attention.score_factor) - 1) / math.log(
                scaling.factor
            )
    if isinstance(scaling, LongRopeScaling) and scaling != _constant(scaling.short_factors, decoder.context):
        said["rope.scaling.original_context_length"] = scaling.original_positions
        said["rope.scaling.attn_factor"] = float(scaling.long_attention_factor)
    return said


def _unlike(one: Any, other: Any, place: str) -> str | None:
    """The first place where two descriptions differ; numbers that are one in fp32 do not."""
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        pairs = [(getattr(one, f.name), getattr(other, f.name), f"{place}.{f.name}") for f in dataclasses.fields(one)]
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = [(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True))]
    elif one == other or (isinstance(one, float) and isinstance(other, float) and _near(one, other)):
        return None
    else:
        return f"{place.lstrip('.')} is {str(one)[:60]}, a file of it is read as {str(other)[:60]}"
    return next((found for pair in pairs if (found := _unlike(*pair))), None)


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 4 * np.finfo(np.float32).eps * max(abs(one), abs(other))
