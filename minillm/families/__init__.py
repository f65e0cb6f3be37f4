"""One file per family: what a config means (`spec`), what absent keys mean (`DEFAULTS`), what tensors fill (`RULES`).

The name of a family appears in this folder and nowhere else in the package.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from minillm.config import Config, same
from minillm.families import (
    apertus,
    arcee,
    baichuan,
    bloom,
    chatglm,
    cohere,
    cohere2,
    cwm,
    deepseek,
    deepseek_v2,
    deepseek_v3,
    dots1,
    ernie4_5,
    ernie4_5_moe,
    exaone,
    exaone4,
    exaone_moe,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma4,
    gemma4_unified,
    glm,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    granitemoe,
    helium,
    hunyuan_v1_dense,
    hunyuan_v1_moe,
    hy_v3,
    internlm2,
    internlm3,
    kimi_k25,
    llama,
    llava,
    mellum,
    mimo,
    minimax_m2,
    ministral3,
    mistral,
    mistral3,
    mixtral,
    mpt,
    olmo,
    olmo2,
    olmo3,
    olmo_hybrid,
    olmoe,
    opt,
    phi,
    phi3,
    phimoe,
    plamo,
    plamo3,
    qwen,
    qwen2,
    qwen2_5_vl,
    qwen2_audio,
    qwen2_moe,
    qwen2_vl,
    qwen3,
    qwen3_5,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    qwen3_vl,
    qwen3_vl_moe,
    seed_oss,
    smollm3,
    solar_open,
    stablelm,
    starcoder2,
    tanuki,
    youtu,
)
from minillm.families.gguf import rules as gguf_rules
from minillm.families.shared import makers
from minillm.spec import Decoder
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.rules import SPARE, Rules, sources

FAMILIES = {  # by the config's model_type
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma3_text": gemma3,
    "gemma3n": gemma3n,
    "gemma3n_text": gemma3n,
    "gemma4": gemma4,
    "gemma4_text": gemma4,
    "gemma4_unified": gemma4_unified,
    "gemma4_unified_text": gemma4_unified,
    "phi": phi,
    "phi3": phi3,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "plamo": plamo,
    "plamo3": plamo3,
    "mixtral": mixtral,
    "tanuki": tanuki,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
    "qwen3_next": qwen3_next,
    "qwen3_5": qwen3_5,
    "qwen3_5_text": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "qwen3_5_moe_text": qwen3_5_moe,
    "olmo_hybrid": olmo_hybrid,
    "olmoe": olmoe,
    "phimoe": phimoe,
    "deepseek": deepseek,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "kimi_k2": deepseek_v3,
    **dict.fromkeys(("qwen2_vl", "qwen2_vl_text"), qwen2_vl),
    **dict.fromkeys(("qwen2_5_vl", "qwen2_5_vl_text"), qwen2_5_vl),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_text"), qwen3_vl),
    **dict.fromkeys(("qwen3_vl_moe", "qwen3_vl_moe_text"), qwen3_vl_moe),
    "kimi_k25": kimi_k25,
    "mistral3": mistral3,
    "llava": llava,
    "qwen2_audio": qwen2_audio,
    "glm": glm,
    "glm4": glm4,
    "glm4_moe": glm4_moe,
    "glm4_moe_lite": glm4_moe_lite,
    "dots1": dots1,
    "solar_open": solar_open,
    "hy_v3": hy_v3,
    "minimax_m2": minimax_m2,
    "ernie4_5": ernie4_5,
    "ernie4_5_moe": ernie4_5_moe,
    "seed_oss": seed_oss,
    "starcoder2": starcoder2,
    "stablelm": stablelm,
    "gptj": gptj,
    "falcon": falcon,
    "mellum": mellum,
    "exaone4": exaone4,
    "internlm2": internlm2,
    "internlm3": internlm3,
    "cwm": cwm,
    "helium": helium,
    "youtu": youtu,
    "exaone": exaone,
    "qwen": qwen,
    "chatglm": chatglm,
    "mimo": mimo,
    "baichuan": baichuan,
    "smollm3": smollm3,
    "granite": granite,
    "granitemoe": granitemoe,
    "gpt2": gpt2,
    "gpt_bigcode": gpt_bigcode,
    "gpt_neo": gpt_neo,
    "opt": opt,
    "bloom": bloom,
    "cohere": cohere,
    "cohere2": cohere2,
    "apertus": apertus,
    "arcee": arcee,
    "hunyuan_v1_dense": hunyuan_v1_dense,
    "ministral3": ministral3,
    "exaone_moe": exaone_moe,
    "hunyuan_v1_moe": hunyuan_v1_moe,
    "mpt": mpt,
}

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
    for made in (gguf_rules.rules(config), makers.rules(config)):
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
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise ValueError(f"config.json: model_type {kind!r} is not supported; supported are {', '.join(FAMILIES)}")
    if hasattr(family, "inner"):
        values = family.inner(values)
    return family, Config(_spelled(values, family.DEFAULTS), family.DEFAULTS)


def renamed(values: Mapping[str, Any]) -> dict[str, str]:
    """What transformers' names of a family's modules have in place of the checkpoint's names."""
    return getattr(FAMILIES[values["model_type"]], "TRANSFORMERS", {})


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
