"""config.json of every family with odd values, and the small files beside it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from minillm.config import HARMLESS
from minillm.families import FAMILIES
from tests.fuzz.case import CHAT, EXPLAIN, GENERATE, PLAN, Case, anywhere, changed, damaged, odd, text_of
from tests.fuzz.honest import CONFIG, TOKENIZER_CONFIG
from tests.helpers.rows import BASE, ROWS, YARN

SAMPLING = {
    "do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1,
    "presence_penalty": 0.5, "frequency_penalty": 0.5, "max_new_tokens": 2, "max_length": 9, "eos_token_id": [2, 3],
    "bos_token_id": 1, "pad_token_id": 0, "stop_strings": ["x"], "num_beams": 1, "cache_implementation": "static",
    "num_return_sequences": 1, "typical_p": 1.0, "suppress_tokens": [], "_from_model_config": True, "foo": 1,
}  # fmt: skip
TOKEN = {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
SPECIAL = {
    **TOKENIZER_CONFIG, "bos_token": TOKEN, "unk_token": "<unk>", "pad_token": None, "add_bos_token": True,
    "legacy": False, "added_tokens_decoder": {"1": TOKEN, "40": {**TOKEN, "content": "<x>"}},
    "extra_special_tokens": {"image_token": "<i>"}, "additional_special_tokens": ["<a>", TOKEN],
    "model_max_length": 10**30, "tokenizer_class": "LlamaTokenizer", "clean_up_tokenization_spaces": False,
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
}  # fmt: skip
BESIDE: dict[str, Any] = {
    "generation_config.json": SAMPLING,
    "tokenizer_config.json": SPECIAL,
    "special_tokens_map.json": {"bos_token": TOKEN, "eos_token": "</s>", "additional_special_tokens": ["<a>", TOKEN]},
    "chat_template.json": {"chat_template": "{{ messages[0].content }}"},
    "added_tokens.json": {"<x>": 40, "<s>": 1},
}
SECTIONS = {
    "rope_scaling": {**YARN, "type": "yarn", "beta_fast": 8.0, "mscale": 0.8, "mscale_all_dim": 1.3, "truncate": False},
    "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head"], "bits": 4, "group_size": 16,
    },
    "text_config": {"hidden_size": 16},
    "layer_types": ["full_attention"],
}  # fmt: skip


def cases(seed: int) -> Iterator[Case]:
    chance = random.Random(f"configs {seed}")
    makers = [_described, _run, _run, _beside, _beside]
    while True:
        yield chance.choice(makers)(chance)


def _described(chance: random.Random) -> Case:
    """Any family, without weights of its own."""
    name = chance.choice(sorted(FAMILIES))
    rows = [each for family, each in ROWS.values() if family == name] or [{}]
    values = {"model_type": name, **BASE, **chance.choice(rows)}
    values = _changed(chance, values, sorted({*FAMILIES[name].DEFAULTS, *values}))
    command = chance.choice((EXPLAIN, PLAN, [*EXPLAIN[:-1], "--equations"], [*EXPLAIN, "--tensors"]))
    return Case(f"{name} {_brief(values)}", command, {"config.json": damaged(chance, text_of(values))})


def _run(chance: random.Random) -> Case:
    """The honest weights under a config that may not fit them."""
    values = _changed(chance, CONFIG, sorted({*FAMILIES["llama"].DEFAULTS, *CONFIG, "model_type"}))
    if chance.random() < 0.1:
        values["model_type"] = chance.choice(sorted(FAMILIES))
    return Case(f"run {_brief(values)}", GENERATE, {"config.json": damaged(chance, text_of(values))})


def _changed(chance: random.Random, values: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    if chance.random() < 0.3:
        name = chance.choice(sorted(SECTIONS))
        return {**values, name: anywhere(chance, SECTIONS[name], chance.randint(0, 2))}
    known = [*keys, *keys, *sorted(HARMLESS), "sliding_window", "head_dim", "auto_map", "text_config", "\x1b]0;x\x07"]
    return changed(chance, values, known)


def _beside(chance: random.Random) -> Case:
    """A small file beside config.json."""
    name = chance.choice(sorted(BESIDE))
    values = BESIDE[name]
    if chance.random() < 0.5:
        kept = chance.sample(sorted(values), chance.randint(1, len(values)))
        values = {key: values[key] for key in kept}
    values = changed(chance, values, list(values)) if chance.random() < 0.5 else anywhere(chance, values, 2)
    if chance.random() < 0.03:
        values = odd(chance)
    text = text_of(values)
    return Case(f"{name} {text[:60]}", chance.choice((GENERATE, CHAT)), {name: damaged(chance, text)})


def _brief(values: dict[str, Any]) -> str:
    new = {key: each for key, each in values.items() if CONFIG.get(key, BASE.get(key, ...)) != each}
    return text_of({key: new[key] for key in list(new)[-3:]})[:80]
