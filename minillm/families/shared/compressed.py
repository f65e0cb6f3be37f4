"""Compressed attention and hyper-connections under the names of their authors' own code: tensor names and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minillm.config import MAX_POSITIONS, Config, number, positive_integer
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import Compressed, Entries, EntryIndexer, Norm, Rope

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
RATES = {SPARSE: 4, HEAVY: 128}
KINDS = {0: SLIDING, **{rate: kind for kind, rate in RATES.items()}}  # by the number that published files list
PARTIAL = 64 / 512  # of a head that turns, where nothing is said

_PARTS = {"fn": "mix", "base": "shift", "scale": "scale"}
_LAYER, _ATTN = "layers.{i}.", "layers.{i}.attention."


def _pooled(name: str, target: str) -> dict[str, str]:
    """Rules for what makes entries, whose names begin so."""
    return {
        f"{name}.wkv.weight": f"{target}.kv_gate.weight[kv]",
        f"{name}.wgate.weight": f"{target}.kv_gate.weight[gate]",
        f"{name}.ape": f"{target}.place",
        f"{name}.norm.weight": f"{target}.norm.weight",
    }


def _mixed(name: str, target: str) -> dict[str, str]:
    """Rules for what mixes streams."""
    return {f"{name}_{part}": f"{target}.{own}" for part, own in _PARTS.items()}


_NAMES = {
    "attn_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
    "attn.wq_a": "attention.q_down",
    "attn.q_norm": "attention.q_norm",
    "attn.wq_b": "attention.q",
    "attn.wkv": "attention.kv",
    "attn.kv_norm": "attention.kv_norm",
    "attn.wo_a": "attention.group",
    "attn.wo_b": "attention.out",
    "attn.indexer.wq_b": "attention.entries.indexer.q",
    "attn.indexer.weights_proj": "attention.entries.indexer.weights",
    "ffn.gate": "ffn.router",
}
_NATIVE = {
    "embed.weight": "embedding.weight",
    "norm.weight": "norm.weight",
    "head.weight": "head.weight",
    **_mixed("hc_head", "streams"),
    **_mixed(f"{_LAYER}hc_attn", f"{_LAYER}attention_mix"),
    **_mixed(f"{_LAYER}hc_ffn", f"{_LAYER}ffn_mix"),
    **{f"{_LAYER}{name}.weight": f"{_LAYER}{target}.weight" for name, target in _NAMES.items()},
    f"{_LAYER}attn.attn_sink": f"{_ATTN}sinks",
    **_pooled(f"{_LAYER}attn.compressor", f"{_ATTN}entries.made"),
    **_pooled(f"{_LAYER}attn.indexer.compressor", f"{_ATTN}entries.indexer.keys"),
    f"{_LAYER}ffn.gate.bias": f"{_LAYER}ffn.router.bias",
    f"{_LAYER}ffn.gate.tid2eid": f"{_LAYER}ffn.router.table",
    f"{_LAYER}ffn.experts.{{e}}.w1.weight": f"{_LAYER}ffn.experts.gate_up[{{e}}.gate]",
    f"{_LAYER}ffn.experts.{{e}}.w3.weight": f"{_LAYER}ffn.experts.gate_up[{{e}}.up]",
    f"{_LAYER}ffn.experts.{{e}}.w2.weight": f"{_LAYER}ffn.experts.down[{{e}}]",
    f"{_LAYER}ffn.shared_experts.w1.weight": f"{_LAYER}ffn.shared.gate_up.weight[gate]",
    f"{_LAYER}ffn.shared_experts.w3.weight": f"{_LAYER}ffn.shared.gate_up.weight[up]",
    f"{_LAYER}ffn.shared_experts.w2.weight": f"{_LAYER}ffn.shared.down.weight",
}
# As transformers 5 writes them: with another beginning, and some names of its own.
RULES = {
    **_NATIVE,
    **{f"model.{name}": target for name, target in _NATIVE.items() if name.startswith(("layers.", "norm."))},
    "model.embed_tokens.weight": "embedding.weight",
    **{f"model.hc_head.hc_{part}": f"streams.{own}" for part, own in _PARTS.items()},
    f"model.{_LAYER}attn.norm.weight": f"{_ATTN}kv_norm.weight",
}
# What transformers calls the modules of these names, one after the other.
TRANSFORMERS = {
    "model.layers.": "layers.",
    "model.embed_tokens": "embed",
    "layers.": "model.layers.",
    "embed": "model.embed_tokens",
    "head": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    ".attn.": ".self_attn.",
    ".ffn.": ".mlp.",
    ".indexer.compressor": ".compressor.indexer",
    ".self_attn.indexer.weights_proj": ".self_attn.compressor.indexer.scorer.weights_proj",
    ".self_attn.indexer.wq_b": ".self_attn.compressor.indexer.q_b_proj",
    **{f".{holder}.norm": f".{holder}.kv_norm" for holder in ("self_attn", "compressor", "indexer")},
    "q_norm": "q_a_norm",
    "wq_a": "q_a_proj",
    "wq_b": "q_b_proj",
    "wkv": "kv_proj",
    "wgate": "gate_proj",
    "wo_a": "o_a_proj",
    "wo_b": "o_b_proj",
    "shared_experts.w1": "shared_experts.gate_proj",
    "shared_experts.w3": "shared_experts.up_proj",
    "shared_experts.w2": "shared_experts.down_proj",
}


def attentions(config: Config, norm: Norm) -> list[Compressed]:
    """Each layer's."""
    num_heads, head_dim, groups = (config.size(key) for key in ("num_attention_heads", "head_dim", "o_groups"))
    window, turned = config.size("sliding_window", MAX_POSITIONS), _ropes(config, head_dim)
    if num_heads % groups:
        raise ValueError(f"config.json: {num_heads} attention heads are no multiple of {groups} o_groups")
    plain = Compressed(
        num_heads,
        head_dim,
        config.size("q_lora_rank"),
        turned["main"],
        window,
        norm,
        groups,
        config.size("o_lora_rank"),
    )
    made, rates = {SLIDING: plain}, _rates(config)
    chosen = EntryIndexer(*(config.size(f"index_{key}") for key in ("n_heads", "head_dim", "topk")))
    if chosen.head_dim < plain.rope.dim:
        raise ValueError(f"config.json: index_head_dim is {chosen.head_dim}, and {plain.rope.dim} values of it turn")
    for kind, entries in {
        SPARSE: Entries(rates[SPARSE], head_dim, norm, True, chosen),
        HEAVY: Entries(rates[HEAVY], head_dim, norm),
    }.items():
        made[kind] = replace(plain, rope=turned["compress"], entries=entries)
    found = [made[kind] for kind in _kinds(config)]
    if odd := [each.entries.reach for each in found if each.entries and each.entries.reach > window]:
        raise ValueError(f"config.json: sliding_window is {window}, and an entry is made of {odd[0]} positions")
    return found


def _rates(config: Config) -> dict[str, int]:
    """Positions of an entry, by the kind of layer."""
    stated = config.get("compress_rates") or {}
    if not isinstance(stated, dict) or not set(stated) <= set(RATES):
        raise ValueError(f"config.json: compress_rates is {shown(stated)}, expected numbers for {' and '.join(RATES)}")
    older = {SPARSE: config.get("compress_rate_csa"), HEAVY: config.get("compress_rate_hca")}
    given = {**RATES, **stated, **{kind: rate for kind, rate in older.items() if rate is not None}}
    return {kind: positive_integer("compress_rates", rate, MAX_POSITIONS) for kind, rate in given.items()}


def _kinds(config: Config) -> list[str]:
    """What each layer is: what the config says, or two of heavy compression, then both kinds in turn."""
    kinds, ratios, layers = config.get("layer_types"), config.get("compress_ratios"), common.num_layers(config)
    if kinds is None and ratios is not None:
        if not isinstance(ratios, list) or len(ratios) < layers or any(type(each) is not int for each in ratios):
            raise ValueError(f"config.json: compress_ratios must list a number for each of the {layers} layers")
        kinds = [KINDS.get(each, each) for each in ratios[:layers]]  # behind them is the layer that looks ahead
    if kinds is None:
        kinds = [SPARSE if index > 1 and index % 2 else HEAVY for index in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ValueError(f"config.json: layer_types must list one type for each of the {layers} layers")
    if odd := [each for each in kinds if each not in KINDS.values()]:
        words = ", ".join(f"{kind} ({ratio})" for ratio, kind in KINDS.items())
        raise ValueError(f"config.json: a layer is {shown(odd[0])}; there are {words}")
    return kinds


def _ropes(config: Config, head_dim: int) -> dict[str, Rope]:
    """Those of layers without entries, and with them, which alone are scaled; cos and sin never are."""
    part, turning = config.optional_number("partial_rotary_factor"), config.optional_size("qk_rope_head_dim")
    if part is None:
        part = PARTIAL if turning is None else turning / head_dim
    dim = int(head_dim * number("partial_rotary_factor", part, low=1e-3, high=1.0))
    config.derived("qk_rope_head_dim", {dim})
    stated, thetas = config.get("rope_parameters"), {"main": "rope_theta", "compress": "compress_rope_theta"}
    nested: Mapping[str, Any] = stated if isinstance(stated, dict) else {}
    if isinstance(nested.get("main"), dict) and isinstance(nested.get("compress"), dict):
        config.get("rope_scaling")
        sections = {kind: dict(nested[kind]) for kind in thetas}
    else:
        scaled = {key: value for key, value in config.rope().items() if key != "rope_theta"}
        sections = {"main": {}, "compress": scaled}
    found = {}
    for kind, key in thetas.items():
        values = {"rope_type": "default", "rope_theta": config.number(key), **sections[kind]}
        if (own := values.pop("partial_rotary_factor", part)) != part:
            raise ValueError(f"config.json: partial_rotary_factor is {own!r} in rope_parameters, and {part!r} outside")
        if values["rope_type"] == "yarn" and values.get("attention_factor") is None:
            values["attention_factor"] = 1.0
        elif values["rope_type"] not in ("default", "linear", "yarn"):
            raise ValueError(f"config.json: rope_type is {shown(values['rope_type'])}; default, linear and yarn work")
        found[kind] = replace(rotary.scaled(config, values, dim), layout="interleaved")
    return found
