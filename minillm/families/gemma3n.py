"""Llama, except: embedding, activation, norms behind attention and MLP, windows and two rotary embeddings as in
Gemma 3, but norms have plain weights; scores are not scaled; v is normalised; the last layers read the keys and values
of others; layers have embeddings of their own, four residual streams, a product of low rank beside attention, and the
first ones a gate of which only the largest values are kept; MLPs may differ in width.

Gemma 3n E2B, E4B (2025), the text model: what images and sound go through is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minillm.config import MAX_POSITIONS, MAX_SIZE, Config, number, positive_integer
from minillm.families import gemma3
from minillm.families.shared import common, on_device, rotary, wrapped
from minillm.guard.screen import shown
from minillm.spec import GQA, KV, Decoder, Embedding, GatedMLP, LowRank, Norm, QKNorm, Scores, Streams

# What this family's code knows: layers work on the first stream, and what they tell the others has a learned factor.
FIXED = {"altup_active_idx": 0, "altup_correct_scale": True}
DEFAULTS = {
    **gemma3.DEFAULTS,
    **on_device.DEFAULTS,
    **FIXED,
    **dict(zip(("vocab_size", "hidden_size", "intermediate_size"), (262400, 2048, 16384), strict=True)),
    **dict(zip(("num_hidden_layers", "num_key_value_heads", "num_kv_shared_layers"), (35, 2, 15), strict=True)),
    "max_position_embeddings": 32768, "rope_parameters": None, "sliding_window": 512, "final_logit_softcapping": 30.0,
    "altup_num_inputs": 4, "altup_coef_clip": 120.0, "laurel_rank": 64, "activation_sparsity_pattern": None,
}  # fmt: skip
SPAN = 5  # the last layer of each so many has no window, where the config does not say
SPARSE = ([0.95] * 10, 10)  # the first layers' share of zeros, in models of more layers
TEXT_RULES = {**gemma3.TEXT_RULES, **on_device.RULES, **on_device.STREAM_RULES}
TRANSFORMERS: dict[str, str] = {}
inner = wrapped.inner


def rules(config: Config) -> dict[str, str]:
    return on_device.rules(config, TEXT_RULES)


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(("altup_coef_clip", "query_pre_attn_scalar"))  # of training; scores are not scaled
    count, norm = common.num_layers(config), Norm(config.number("rms_norm_eps"), cast="after_weight")
    num_heads, num_kv_heads, head_dim = common.heads(config)
    slides = config.size("sliding_window", MAX_POSITIONS)
    windows = common.typed_windows(config, slides, [(i + 1) % SPAN != 0 for i in range(count)])
    ropes = rotary.by_window(config, head_dim, windows, config.get("rope_local_base_freq"))
    bias, own = config.flag("attention_bias"), KV(Norm(norm.eps, affine=False))
    attention = GQA(num_heads, num_kv_heads, head_dim, ropes[0], None, bias, bias, QKNorm(norm), scores=Scores(1.0))
    kv = [own if of is None else KV(layer=of) for of in on_device.sources(config, windows)]
    mixers = [replace(a, kv=each) for a, each in zip(common.in_layers(attention, windows, ropes), kv, strict=True)]
    ffn = _mlps(config, count)
    parts = {"post_attention_norm": norm, "post_ffn_norm": norm, "low_rank": LowRank(config.size("laurel_rank"), norm)}
    made = common.every_layer(common.decoder(config, mixers, ffn, norm), **parts)
    return replace(
        made,
        embedding=Embedding(made.hidden_size**0.5),
        logit_softcap=config.optional_number("final_logit_softcapping"),
        per_layer=on_device.per_layer(config, norm, every_token=False),
        streams=Streams(config.size("altup_num_inputs", limit=64), norm),
    )


def _mlps(config: Config, count: int) -> list[GatedMLP]:
    """Each layer's, whose width and share of zeros the config may list."""
    activation, few = config.choice("hidden_activation", common.ACTIVATIONS), SPARSE[0] if count > SPARSE[1] else []
    widths, zeros = config.get("intermediate_size"), config.get("activation_sparsity_pattern")
    widths = _listed("intermediate_size", widths if isinstance(widths, list) else [widths] * count, count)
    zeros = [*few, *[0.0] * (count - len(few))] if zeros is None else zeros
    zeros = _listed("activation_sparsity_pattern", zeros, count)
    return [
        GatedMLP(
            positive_integer("intermediate_size", width, MAX_SIZE),
            activation,
            sparsity=number("activation_sparsity_pattern", share, low=0.0, high=0.9999),
        )
        for width, share in zip(widths, zeros, strict=True)
    ]


def _listed(key: str, values: Any, count: int) -> list[Any]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"config.json: {key} is {shown(values)}, expected a list with one for each of {count} layers")
    return values
