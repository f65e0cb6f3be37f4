"""One file per family: what a config means (`spec`), what absent keys mean (`DEFAULTS`), what tensors fill (`RULES`).

The name of a family appears in this folder and nowhere else in the package.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from minillm.config import Config, same
from minillm.families.gguf import rules as gguf_rules
from minillm.families.makers import layouts
from minillm.families.refused import REASONS
from minillm.families.registry import FAMILIES
from minillm.spec import Decoder
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.rules import SPARE, Rules, sources

HEAD, HEAD_BIAS = "head.weight", "head.bias"
TIED = f"{SPARE}embedding.weight"  # where a tied head goes

# Keys that mean the same: what one spelling of a config says and another leaves out.
ALIASES = {
    "num_local_experts": "num_experts",
    "num_experts": "num_local_experts",
    **dict.fromkeys(("n_embd", "n_embed", "d_model"), "hidden_size"),
    **dict.fromkeys(("num_heads", "n_head", "n_heads"), "num_attention_heads"),
    **dict.fromkeys(("n_layer", "num_layers", "n_layers"), "num_hidden_layers"),
    **dict.fromkeys(("n_positions", "max_seq_len"), "max_position_embeddings"),
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
}


def resolve(values: Mapping[str, Any]) -> tuple[Decoder, Rules, Config]:
    """The spec and the weight rules of a config.json; the `Config` tells what keys nobody understood.

    Raises ValueError for a model_type that no family claims, and for values that cannot be.
    """
    family, config = read(values)
    decoder, rules = family.spec(config), _rules(family, config)
    if decoder.tied:  # the copy that some checkpoints store all the same, or the only one that others do
        rules = {name: TIED if to == HEAD else to for name, to in rules.items()}
    return decoder, rules, config


def spare_heads(tensors: Collection[str], rules: Rules) -> list[str]:
    """Those of a tied head, by the rules of `resolve`."""
    return sources(tensors, rules, TIED)


def own_head(values: Mapping[str, Any], checkpoint: Checkpoint) -> str | None:
    """The tensor of a head that is not the embedding, in a checkpoint whose config ties the two: a fine-tune may have
    trained it apart. None where there is no head, or an equal one in the same type."""
    rules = _rules(*read(values))
    heads, embeddings = (sources(checkpoint.info, rules, to) for to in (HEAD, "embedding.weight"))
    pairs = itertools.product(heads[:1], embeddings[:1])
    return next((head for head, embedding in pairs if not checkpoint.equal(head, embedding)), None)


def untied(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that says its head is its own."""
    section, changed = values.get("text_config"), {"tie_word_embeddings": False}
    return {**values, **changed, **({"text_config": {**section, **changed}} if isinstance(section, dict) else {})}


def own_names(values: Mapping[str, Any]) -> tuple[Decoder, Rules]:
    """The spec of a config.json with a head of its own, and the rules for the names that the family's checkpoints have,
    whatever kind of file the weights are in: adapters are written with those."""
    family, config = read(untied(values))
    return family.spec(config), _family_rules(family, config)


def _rules(family: ModuleType, config: Config) -> Rules:
    for made in (gguf_rules.rules(config), layouts.rules(config)):
        if made is not None:
            return made
    return _family_rules(family, config)


def _family_rules(family: ModuleType, config: Config) -> Rules:
    return dict(family.rules(config) if hasattr(family, "rules") else family.RULES)


def prediction_layers(values: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """The layers behind the decoder that its checkpoint stores all the same: how the names of a layer's tensors begin,
    and the shapes of those it has besides what the last layer of the decoder has."""
    family, config = read(values)
    return family.prediction_layers(config) if hasattr(family, "prediction_layers") else {}


def read(values: Mapping[str, Any]) -> tuple[ModuleType, Config]:
    """The family of a config.json, and its values over the family's defaults."""
    kind = values.get("model_type")
    name = kind if isinstance(kind, str) else ""
    family, reason = FAMILIES.get(name), REASONS.get(name)
    if family is None:
        why = f": {reason}" if reason else f"; supported are {', '.join(FAMILIES)}"
        raise ValueError(f"config.json: model_type {kind!r} is not supported{why}")
    if hasattr(family, "inner"):
        values = family.inner(values)
    return family, Config(_spelled(values, family.DEFAULTS), family.DEFAULTS)


def renamed(values: Mapping[str, Any]) -> dict[str, str]:
    """What transformers' names of a family's modules have in place of the checkpoint's names."""
    return getattr(FAMILIES[values["model_type"]], "TRANSFORMERS", {})


def words(values: Mapping[str, Any]) -> dict[str, str]:
    """What keys of a config.json, in sections of it too, are called elsewhere."""
    return {**ALIASES, **getattr(FAMILIES[values["model_type"]], "WORDS", {})}


def _spelled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the names that the family knows them by: transformers 5 writes `num_local_experts` for what
    published files of some families call `num_experts`, and the first files had short names."""
    for key, other in sorted(ALIASES.items()):
        same({key: values.get(key), other: values.get(other)})
    made = {key: value for key, value in values.items() if key not in ALIASES or key in defaults}
    for key in set(values) - set(made):
        if made.get(ALIASES[key]) is None:
            made[ALIASES[key]] = values[key]
    return made
