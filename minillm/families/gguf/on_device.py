"""Gemma 3n and Gemma 4 in a GGUF file: what differs from layer to layer, and the parts that only they have.

Positions of layers without a window turn by a tensor of factors: one for each pair that turns, 1e30 for the others.
llama.cpp has sizes of Gemma 3n fixed, and wants keys and values of layers that use those of others, which it does not
read; so files have zeros there.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import numpy as np

from minillm.families.gguf.metadata import FACTORS, File, factors
from minillm.spec import GQA, Decoder, Layer, MoE, ProportionalScaling, Rope

SLIDING, FULL = "sliding_attention", "full_attention"
TABLE, LOW_RANK = "per_layer_token_embd.weight", "blk.0.laurel_l.weight"
STILL = 1e30  # the factor of a pair that does not turn
SPARSE = (0.95, 10)  # the share of zeros of the first layers' gates, and how many they are, where a file is silent
OWN = 20  # the layers of Gemma 3n that have keys and values, in llama.cpp


def gemma3n(file: File) -> dict[str, Any]:
    count = file.size("block_count")
    widths, scales = file.each("feed_forward_length") or [], file.each("activation_sparsity_scale")
    few = [SPARSE[0]] * SPARSE[1] + [0.0] * count
    bases = {FULL: file.get("rope.freq_base", 10000.0), SLIDING: file.get("rope.freq_base_swa", 10000.0)}
    return {
        "model_type": "gemma3n_text",
        **_layers(file, 5),
        "intermediate_size": widths * count if len(widths) == 1 else widths,
        "activation_sparsity_pattern": few[:count] if scales is None else [_share(each) for each in scales],
        "altup_num_inputs": file.size("altup.num_inputs", 4),
        "altup_active_idx": file.size("altup.active_idx", 0),
        "laurel_rank": (file.tensors.shape(LOW_RANK) or (64,))[0],
        "final_logit_softcapping": file.get("final_logit_softcapping", 30.0),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
    }


def gemma4(file: File) -> dict[str, Any]:
    count, kinds = file.size("block_count"), _layers(file, 6)
    first = count - kinds["num_kv_shared_layers"]
    full = next((i for i, kind in enumerate(kinds["layer_types"]) if kind == FULL), 0)
    widths, heads = (file.each(key) or [] for key in ("feed_forward_length", "attention.head_count_kv"))
    local = next((i for i, kind in enumerate(kinds["layer_types"]) if kind == SLIDING), full)
    double = len(widths) > 1 and widths[-1] != widths[0]
    if double and widths != [widths[0]] * first + [2 * widths[0]] * (count - first):
        raise ValueError(f"{file.architecture}.feed_forward_length: the last {count - first} layers may have twice the "
                         "width of the others, not another one")  # fmt: skip
    wide, narrow = (_width(file, suffix) for suffix in ("", "_swa"))
    own = {"num_key_value_heads": _at(heads, full), "head_dim": wide}
    base = file.get("rope.freq_base_swa", 10000.0)
    values: dict[str, Any] = {
        "model_type": "gemma4_text",
        **kinds,
        "intermediate_size": _at(widths, 0),
        "use_double_wide_mlp": double,
        "num_key_value_heads": _at(heads, local),
        "head_dim": narrow,
        "per_layer_config": {
            str(i).zfill(len(str(count - 1))): own for i, kind in enumerate(kinds["layer_types"]) if kind == FULL
        },
        "attention_k_eq_v": not file.has(f"blk.{full}.attn_v.weight"),
        "final_logit_softcapping": file.get("final_logit_softcapping"),
        "rope_parameters": {FULL: _turned(file), SLIDING: {"rope_type": "default", "rope_theta": base}},
    }
    if file.get("expert_count", 0):
        values |= {
            "enable_moe_block": True,
            "num_experts": file.need("expert_count"),
            "top_k_experts": file.need("expert_used_count"),
            "moe_intermediate_size": file.need("expert_feed_forward_length"),
        }
    return values


def _layers(file: File, span: int) -> dict[str, Any]:
    """What both say alike; where a file does not list the windows, every `span`-th layer has none."""
    count, slides = file.size("block_count"), file.each("attention.sliding_window_pattern")
    if slides is None or len(slides) != count:
        slides = [(i + 1) % (slides[0] if slides else span) != 0 for i in range(count)]
    table = file.tensors.shape(TABLE)
    return {
        "layer_types": [SLIDING if each else FULL for each in slides],
        "sliding_window": file.need("attention.sliding_window"),
        "num_kv_shared_layers": file.size("attention.shared_kv_layers", 0),
        "hidden_size_per_layer_input": file.size("embedding_length_per_layer_input", 0),
        **({"vocab_size_per_layer_input": table[0]} if table else {}),
        "rope_scaling": None,
    }


def _at(values: list[Any], index: int) -> Any:
    return values[min(index, len(values) - 1)] if values else None


def _width(file: File, suffix: str) -> int:
    """The width of a head of one kind of layer; of a whole one, with values as wide as keys."""
    width = file.size(f"attention.key_length{suffix}")
    for key in (f"attention.value_length{suffix}", f"rope.dimension_count{suffix}"):
        if file.size(key, width) != width:
            raise ValueError(f"{file.architecture}.{key} is {file.get(key)}; heads of this family are {width} wide")
    return width


def _share(scale: float) -> float:
    """The share of values below so many standard deviations."""
    return round(0.5 * (1 + math.erf(scale / math.sqrt(2))), 6)


def _turned(file: File) -> dict[str, Any]:
    """Positions of layers without a window."""
    if (kind := file.get("rope.scaling.type", "none")) != "none":
        raise ValueError(f"{file.architecture}.rope.scaling.type is {kind!r}; this family scales by a tensor")
    base, found = file.get("rope.freq_base", 10000.0), factors(file, FACTORS) if file.has(FACTORS) else []
    turned = [each for each in found if each < STILL / 10]
    if len(set(turned)) > 1 or any(each < STILL / 10 for each in found[len(turned) :]):
        raise ValueError(f"{FACTORS} has factors that differ; this family has one for the first pairs, {STILL} for all "
                         "behind them")  # fmt: skip
    if len(turned) == len(found) and set(turned) <= {1.0}:
        return {"rope_type": "default", "rope_theta": base}
    pairs, count = len(found), len(turned)
    part = count / pairs
    if int(part * 2 * pairs // 2) != count:  # a quotient that was rounded down
        part = math.nextafter(part, 1)
    factor = {"factor": turned[0]} if turned and turned[0] != 1 else {}
    return {"rope_type": "proportional", "rope_theta": base, "partial_rotary_factor": part, **factor}


def metadata(decoder: Decoder) -> dict[str, Any]:
    """What a file of one of them says besides, or in place of, what all say."""
    layers = decoder.layers
    mixers = [layer.attention for layer in layers if isinstance(layer.attention, GQA)]
    full = next(each for each in mixers if each.window is None)
    local = next((each for each in mixers if each.window is not None), full)
    widths = [_mlp(layer).intermediate_size for layer in layers]
    said: dict[str, Any] = {
        "attention.sliding_window": local.window or decoder.context,
        "attention.sliding_window_pattern": np.array([each.window is not None for each in mixers]),
        "attention.shared_kv_layers": sum(each.kv.layer is not None for each in mixers),
        "embedding_length_per_layer_input": decoder.per_layer.size if decoder.per_layer else 0,
        "feed_forward_length": _each(widths),
        "rope.freq_base_swa": float(local.rope.theta) if local.rope else None,
    }
    if decoder.streams is not None:
        scales = [_deviations(layer) for layer in layers]
        said |= {"altup.num_inputs": decoder.streams.count, "altup.active_idx": 0}
        return {**said, "activation_sparsity_scale": np.array(scales, np.float32)}
    for suffix, each in (("", full), ("_swa", local)):
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            said[key + suffix] = each.head_dim
    return {**said, "attention.head_count_kv": _each([each.num_kv_heads for each in mixers])}


def _mlp(layer: Layer) -> Any:
    """The feed-forward that every token goes through."""
    return layer.ffn.shared if isinstance(layer.ffn, MoE) else layer.ffn


def _each(values: list[int]) -> Any:
    return values[0] if len(set(values)) == 1 else np.array(values, np.int32)


def _deviations(layer: Layer) -> float:
    share = getattr(layer.ffn, "sparsity", 0.0)
    return statistics.NormalDist().inv_cdf(share) if share else -math.inf


def unused(decoder: Decoder, architecture: str) -> list[tuple[str, tuple[int, ...]]]:
    """Tensors that llama.cpp wants of layers which use the keys and values of others, and their shapes."""
    if architecture != "gemma3n":
        return []
    mixers = [(i, layer.attention) for i, layer in enumerate(decoder.layers) if isinstance(layer.attention, GQA)]
    return [
        (f"blk.{i}.attn_{part}.weight", shape)
        for i, each in mixers
        if each.kv.layer is not None
        for part, shape in (
            ("k", (each.num_kv_heads * each.head_dim, decoder.hidden_size)),
            ("v", (each.num_kv_heads * each.head_dim, decoder.hidden_size)),
            ("k_norm", (each.head_dim,)),
        )
    ]


def rope_factors(rope: Rope) -> list[float]:
    """The tensor of factors that positions of layers without a window have."""
    pairs, scaling = rope.dim // 2, rope.scaling
    if not isinstance(scaling, ProportionalScaling):
        return [1.0] * pairs
    count = int(scaling.part * rope.dim // 2)
    return [scaling.factor] * count + [STILL] * (pairs - count)


def plain(decoder: Decoder) -> Decoder:
    """The decoder as a file of it says the same: a table of all tokens, and of pairs that turn the number alone."""
    per_layer = decoder.per_layer
    if per_layer is not None:
        per_layer = dataclasses.replace(per_layer, vocab_size=decoder.vocab_size)
    layers = tuple(
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, rope=_counted(layer.attention.rope)))
        if isinstance(layer.attention, GQA) and layer.attention.rope
        else layer
        for layer in decoder.layers
    )
    return dataclasses.replace(decoder, layers=layers, per_layer=per_layer)


def _counted(rope: Rope) -> Rope:
    scaling, pairs = rope.scaling, rope.dim // 2
    if not isinstance(scaling, ProportionalScaling):
        return rope
    count = int(scaling.part * rope.dim // 2)
    if count == pairs and scaling.factor == 1:
        return dataclasses.replace(rope, scaling=None)
    return dataclasses.replace(rope, scaling=dataclasses.replace(scaling, part=count / pairs))
