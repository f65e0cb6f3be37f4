"""Llama, except: all that GPT-2 changes, and every second layer has a window, scores are not scaled, q, k and v have no
biases and a tensor each.

GPT-Neo 125M, 1.3B, 2.7B (Black et al., 2021), TinyStories.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minillm.config import MAX_POSITIONS, Config, positive_integer
from minillm.families.shared import common, learned
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, Scores

DEFAULTS = {
    **learned.DEFAULTS,
    "vocab_size": 50257,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "window_size": 256,
    "attention_types": [[["global", "local"], 12]],
    "attention_layers": None,
    **dict.fromkeys(("resid_dropout", "embed_dropout", "classifier_dropout")),
}
LAYER, ATTENTION = "transformer.h.{i}.", "transformer.h.{i}.attn.attention."
NAMED = {f"{LAYER}mlp.c_fc": "layers.{i}.ffn.up", f"{LAYER}mlp.c_proj": "layers.{i}.ffn.down"}
RULES = {
    **learned.RULES,
    **common.weights_and_biases({**NAMED, f"{ATTENTION}out_proj": "layers.{i}.attention.out"}),
    **{f"{ATTENTION}{part}_proj.weight": f"layers.{{i}}.attention.qkv.weight[{part}]" for part in "qkv"},
    f"{ATTENTION}bias": "DROP",  # computed; early exports stored it
    f"{ATTENTION}masked_bias": "DROP",
}


def spec(config: Config) -> Decoder:
    config.without_effect(("resid_dropout", "embed_dropout", "classifier_dropout"))
    num_heads, _, head_dim = common.heads(config)
    config.derived("num_key_value_heads", {num_heads})
    attention = GQA(num_heads, num_heads, head_dim, None, out_bias=True, scores=Scores(1.0))
    window = config.size("window_size", MAX_POSITIONS)
    return learned.decoder(
        config, [replace(attention, window=window if kind == "local" else None) for kind in _kinds(config)]
    )


def _kinds(config: Config) -> list[str]:
    """Each layer's, of the list, or of runs that are repeated."""
    layers, listed = common.num_layers(config), config.get("attention_layers")
    kinds = listed if listed is not None else _repeated(config.get("attention_types"))
    if not isinstance(kinds, list) or len(kinds) != layers or any(each not in ("global", "local") for each in kinds):
        raise ValueError(f"config.json: attention_types must say global or local for each of the {layers} layers")
    return kinds


def _repeated(runs: Any) -> list[str]:
    if not isinstance(runs, list) or not all(
        isinstance(each, list) and len(each) == 2 and isinstance(each[0], list) for each in runs
    ):
        raise ValueError(f"config.json: attention_types is {shown(runs)}, expected a list of [kinds, how often]")
    often = [positive_integer("attention_types", each[1], common.MAX_LAYERS) for each in runs]
    return [kind for (kinds, _), times in zip(runs, often, strict=True) for kind in kinds * times]
