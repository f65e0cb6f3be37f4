"""Tokens that the files beside tokenizer.json add to a vocabulary, from where transformers takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.guard.jsonfile import read_json

FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


def listed(folder: Path, config: Mapping[str, Any]) -> list[tuple[str, int | None, dict[str, bool]]]:
    """Text, stated id and flags of each, in the order in which those without an id get one.

    tokenizer_config.json's added_tokens_decoder states ids; where it has none, special_tokens_map.json and
    added_tokens.json (text -> id) are read. Then the special tokens by role, and lists of special tokens.
    """
    stated: list[tuple[str, int | None, dict[str, bool]]] = []
    values = dict(config)
    if decoder := config.get("added_tokens_decoder"):
        tokens = decoder.items() if isinstance(decoder, dict) else ()
        stated = [(text, int(i), flags(each)) for i, each in tokens if (text := text_of(each)) and str(i).isdecimal()]
    else:
        if (folder / "special_tokens_map.json").is_file():
            values |= read_json(folder / "special_tokens_map.json")
        named = {text for text, _, _ in _special(values)}
        if (folder / "added_tokens.json").is_file():
            pairs = read_json(folder / "added_tokens.json").items()
            stated = [(t, i, {"special": t in named, "normalized": t not in named}) for t, i in pairs if type(i) is int]
    return [*sorted(stated, key=lambda token: token[1] or 0), *_special(values)]


def _special(values: Mapping[str, Any]) -> list[tuple[str, int | None, dict[str, bool]]]:
    found = [value for key, value in values.items() if key.endswith("_token")]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        several = values.get(key) or []
        found += list(several.values()) if isinstance(several, dict) else several if isinstance(several, list) else []
    return [(text, None, {**flags(value), "special": True}) for value in found if (text := text_of(value))]


def flags(token: Any) -> dict[str, bool]:
    """Those of a serialised AddedToken; one given as its text has none."""
    given = token if isinstance(token, dict) else {}
    return {name: bool(given[name]) for name in FLAGS if name in given}


def text_of(value: Any) -> str | None:
    """The text of a token, given as itself or as a serialised AddedToken."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
