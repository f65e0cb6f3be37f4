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

from minillm.families.gguf import on_device, selective, states
from minillm.families.gguf.architectures import ON_DEVICE
from minillm.families.gguf.metadata import FACTORS, LONG, SHORT
from minillm.families.gguf.placed import SCALED
from minillm.families.gguf.widths import widths
from minillm.spec import (
    GQA,
    MLA,
    Attention,
    Decoder,
    LayerNorm,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    YarnScaling,
)

ARCHITECTURES = {  # by the model_types whose decoders are written as files of it
    "llama": "llama mistral mixtral internlm3",
    "mistral3": "mistral3 ministral3",
    "qwen2": "qwen2 mimo",
    "qwen3": "qwen3",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "qwen35": "qwen3_5 qwen3_5_text",
    "qwen35moe": "qwen3_5_moe qwen3_5_moe_text",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3 gemma3_text",
    "gemma3n": "gemma3n gemma3n_text",
    "gemma4": "gemma4 gemma4_text gemma4_unified gemma4_unified_text",
    "phi2": "phi",
    "phi3": "phi3",
    "gptneox": "gpt_neox",
    "gpt-oss": "gpt_oss",
    "olmo": "olmo",
    "olmo2": "olmo2 olmo3",
    "olmoe": "olmoe",
    "deepseek": "deepseek",
    "deepseek2": "deepseek_v2 deepseek_v3 kimi_k2 kimi_k25 glm4_moe_lite youtu",
    "qwen2vl": "qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text",
    "qwen3vl": "qwen3_vl qwen3_vl_text",
    "qwen3vlmoe": "qwen3_vl_moe qwen3_vl_moe_text",
    "exaone": "exaone",
    "exaone4": "exaone4",
    "qwen": "qwen",
    "baichuan": "baichuan",
    "internlm2": "internlm2",
    "chatglm": "chatglm glm",
    "glm4": "glm4",
    "ernie4_5": "ernie4_5",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "falcon": "falcon",
    "seed_oss": "seed_oss",
    "minimax-m2": "minimax_m2",
    "glm4moe": "glm4_moe solar_open",
    "dots1": "dots1",
    "hy_v3": "hy_v3",
    "ernie4_5-moe": "ernie4_5_moe",
    "mellum": "mellum",
    "gpt2": "gpt2",
    "starcoder": "gpt_bigcode",
    "bloom": "bloom",
    "smollm3": "smollm3",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "arcee": "arcee",
    "hunyuan-dense": "hunyuan_v1_dense",
    "command-r": "cohere",
    "cohere2": "cohere2",
    "lfm2": "lfm2",
    "lfm2moe": "lfm2_moe",
    "nemotron_h": "nemotron_h",
    "granitehybrid": "granitemoehybrid",
    "mamba2": "mamba2",
    "mamba": "mamba falcon_mamba",
    "jamba": "jamba",
    "nemotron": "nemotron",
    "mpt": "mpt",
    "minicpm": "minicpm",
    "hunyuan-moe": "hunyuan_v1_moe",
}
FAMILIES = {kind: name for name, kinds in ARCHITECTURES.items() for kind in kinds.split()}
LOGITS_SCALED, SERIAL_OR_NOT = ("command-r", "cohere2"), ("gptneox", "stablelm")
IMAGES = ("qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe")  # whose positions can be those of an image


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
    attention, norm = next(iter(decoder.attentions), None), decoder.final_norm
    positions = values.get("max_position_embeddings")
    epsilon = "attention.layer_norm_epsilon" if isinstance(norm, LayerNorm) else "attention.layer_norm_rms_epsilon"
    said = {
        "vocab_size": decoder.vocab_size,
        "context_length": min(positions, decoder.context) if type(positions) is int else decoder.context,
        "embedding_length": decoder.hidden_size,
        "block_count": len(decoder.layers),
        epsilon: float(norm.eps),
        **widths(decoder, name, values),
        **(_latent(attention) if isinstance(attention, MLA) else _grouped(attention) if attention else {}),
        **_windows(decoder, name),
        **states.corrected(decoder),
        "rope.dimension_sections": _sections(decoder) if name in IMAGES else None,
        **_positions(decoder, name),
        "final_logit_softcapping": decoder.logit_softcap,
        "use_parallel_residual": decoder.layers[0].parallel if name in SERIAL_OR_NOT else None,
        **(on_device.metadata(decoder) if name in ON_DEVICE else {}),
        **(_factors(decoder) if name in SCALED else {}),
        **({"logit_scale": decoder.logit_scale} if name in LOGITS_SCALED else {}),
        **(states.metadata(decoder, name) if name in (*states.CONVOLVED, *states.SCANNED) else {}),
        **(selective.metadata(decoder, name) if name in selective.NAMES else {}),
        **({"attention.max_alibi_bias": 8.0} if name == "mpt" else {}),
    }
    described = {f"{name}.{key}": value for key, value in said.items() if value is not None}
    return {"general.architecture": name, **described}


def factors(decoder: Decoder, name: str, of_scaling: Sequence[float] | None) -> dict[str, Sequence[float]]:
    """The tensors that have a factor for each frequency; `of_scaling` are those that a rule of scaling amounts to."""
    rope = _everywhere(decoder)
    if rope is None:
        return {}
    scaling = rope.scaling
    if name == "gemma4":
        return {FACTORS: on_device.rope_factors(rope)}
    if isinstance(scaling, Llama3Scaling) and of_scaling:
        return {FACTORS: of_scaling}
    if not isinstance(scaling, LongRopeScaling):
        return {}
    if scaling == _constant(scaling.short_factors, decoder.context):
        return {FACTORS: scaling.short_factors}
    return {LONG: scaling.long_factors, SHORT: scaling.short_factors}


def difference(decoder: Decoder, read: Decoder, of_scaling: Sequence[float] | None) -> str | None:
    """Where a decoder is another one than what a file of it is read as; None where it is not."""
    wanted = on_device.plain(decoder)
    rope = _everywhere(decoder)
    if rope is not None and isinstance(rope.scaling, Llama3Scaling) and of_scaling:
        same = _constant(tuple(of_scaling), decoder.context)
        layers = tuple(
            dataclasses.replace(layer, attention=_scaled(layer.attention, same))
            if isinstance(layer.attention, Attention)
            else layer
            for layer in decoder.layers
        )
        wanted = dataclasses.replace(decoder, layers=layers)
    return _unlike(wanted, read, "")


def _scaled(attention: GQA | MLA, scaling: LongRopeScaling) -> GQA | MLA:
    """The attention, turned so where it turns."""
    if not isinstance(attention.rope, Rope):
        return attention
    turned = dataclasses.replace(attention.rope, scaling=scaling)
    if isinstance(attention, GQA):
        return dataclasses.replace(attention, rope=turned)
    return dataclasses.replace(attention, rope=turned)


def _factors(decoder: Decoder) -> dict[str, Any]:
    return {
        "embedding_scale": decoder.embedding.scale,
        "residual_scale": decoder.layers[0].branch_scale,
        "logit_scale": 1 / decoder.logit_scale,
        "attention.scale": next(each.scores.scale for each in decoder.attentions if isinstance(each, GQA)),
    }


def _constant(of_all: tuple[float, ...], context: int) -> LongRopeScaling:
    """What `gguf_metadata.scaling` reads factors for every length as."""
    return LongRopeScaling(of_all, of_all, context, 1.0, 1.0)


def _everywhere(decoder: Decoder) -> Rope | None:
    """How layers that see everything turn, or those with a window where they alone do; None where nothing turns."""
    layers = [(each.window, each.rope) for each in decoder.attentions if isinstance(each.rope, Rope)]
    return next((rope for window, rope in layers if window is None), layers[0][1]) if layers else None


def _grouped(attention: GQA) -> dict[str, Any]:
    return {
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.num_kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "rope.dimension_count": None if attention.rope is None else attention.rope.dim,
        "attn_logit_softcapping": attention.scores.softcap,
        "attention.temperature_scale": heats.rate if (heats := attention.scores.temperature) else None,
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


def _sections(decoder: Decoder) -> np.ndarray:
    """How many pairs each of an image's three positions turns."""
    rope = _everywhere(decoder)
    assert rope is not None
    half = rope.dim // 2
    return np.array([(half + 2) // 3, (half + 1) // 3, half // 3, 0], np.int32)


def _windows(decoder: Decoder, name: str) -> dict[str, Any]:
    windows = [each.window for each in decoder.attentions]
    if not any(windows):
        return {}
    said: dict[str, Any] = {"attention.sliding_window": next(filter(None, windows))}
    if name in ("gemma3", "mellum"):
        local = next(each for each in decoder.attentions if each.window)
        assert local.rope is not None
        said["rope.freq_base_swa"] = float(local.rope.theta)
        if name == "mellum":
            said["attention.sliding_window_pattern"] = np.array([each is not None for each in windows])
        elif None in windows:
            said["attention.sliding_window_pattern"] = windows.index(None) + 1
    return said


def _positions(decoder: Decoder, name: str) -> dict[str, Any]:
    if (rope := _everywhere(decoder)) is None:
        return {}
    attention = decoder.attentions[0]
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
            multiplier = (math.sqrt(attention.score_factor) - 1) / math.log(scaling.factor)
            said["rope.scaling.yarn_log_multiplier"] = multiplier
        if name == "mistral3" and scaling.attention_factor == 1:
            said["rope.scaling.yarn_log_multiplier"] = 1.0
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
