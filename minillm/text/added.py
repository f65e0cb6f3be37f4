"""Tokens that the files beside tokenizer.json add to a vocabulary, from where transformers takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.guard.files import is_there
from minillm.guard.jsonfile import read_json

ID = re.compile("[0-9]{1,9}")
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
        if is_there(folder / "special_tokens_map.json"):
            values |= read_json(folder / "special_tokens_map.json")
        named = {text for text, _, _ in _special(values)}
        if is_there(folder / "added_tokens.json"):
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


def beside_model(folder: Path, listed: Any) -> tuple[dict[str, int], set[int]]:
    """Text -> id and which ids are special, from added_tokens.json (text -> id) and from `listed`, the
    added_tokens_decoder (id -> token) of tokenizer_config.json."""
    path = folder / "added_tokens.json"
    pairs: list[tuple[Any, Any]] = list(read_json(path).items()) if is_there(path) else []
    tokens: list[tuple[Any, Any]] = list(listed.items()) if isinstance(listed, dict) else [(None, listed)]
    pairs += [(text_of(token), i) for i, token in tokens]
    ids: dict[str, int] = {}
    for text, i in pairs:
        if not isinstance(text, str) or not text or not is_id(i):
            raise ValueError(f"{folder}: added token {text!r} with id {str(i)[:40]!r}, expected a text and a number")
        if ids.setdefault(text, int(i)) != int(i):
            raise ValueError(f"{folder}: added token {text!r} has the ids {ids[text]} and {i}")
    texts: dict[int, str] = {}
    for text, i in ids.items():
        if texts.setdefault(i, text) != text:
            raise ValueError(f"{folder}: the id {i} is that of two added tokens, {texts[i]!r} and {text!r}")
    special = {int(i) for i, token in tokens if isinstance(token, dict) and token.get("special")}
    return ids, special


def is_id(value: Any) -> bool:
    """Whether that is an id, as a number or as JSON's keys have it."""
    return (type(value) is int and 0 <= value < 1 << 31) or (isinstance(value, str) and ID.fullmatch(value) is not None)
