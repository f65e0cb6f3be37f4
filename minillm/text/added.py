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
        tokens = decoder.items() if isinstance(decoder, dict) else [(None, decoder)]
        stated = [(*_entry(folder, text_of(each), i), flags(each)) for i, each in tokens]
    else:
        if is_there(folder / "special_tokens_map.json"):
            values |= read_json(folder / "special_tokens_map.json")
        named = {text for text, _, _ in _special(values)}
        if is_there(folder / "added_tokens.json"):
            pairs = read_json(folder / "added_tokens.json").items()
            entries = [_entry(folder, *pair) for pair in pairs]
            stated = [(text, i, {"special": text in named, "normalized": text not in named}) for text, i in entries]
    return [*sorted(stated, key=lambda token: token[1] or 0), *_special(values)]


def _special(values: Mapping[str, Any]) -> list[tuple[str, int | None, dict[str, bool]]]:
    found = [value for key, value in values.items() if key.endswith("_token")]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        several = values.get(key) or []
        found += list(several.values()) if isinstance(several, dict) else several if isinstance(several, list) else []
    return [(text, None, {**flags(value), "special": True}) for value in found if (text := text_of(value))]


def flags(token: Any) -> dict[str, bool]:
    """Those of a serialised AddedToken; one given as its text has none. Raises ValueError for one that is no flag."""
    given = token if isinstance(token, dict) else {}
    if odd := [name for name in FLAGS if not isinstance(given.get(name, False), bool)]:
        raise ValueError(f"the added token {text_of(token)!r} has {odd[0]} {str(given[odd[0]])[:40]!r}: true or false")
    return {name: given[name] for name in FLAGS if name in given}


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
    for text, i in [_entry(folder, *pair) for pair in pairs]:
        if ids.setdefault(text, i) != i:
            raise ValueError(f"{folder}: added token {text!r} has the ids {ids[text]} and {i}")
    texts: dict[int, str] = {}
    for text, i in ids.items():
        if texts.setdefault(i, text) != text:
            raise ValueError(f"{folder}: the id {i} is that of two added tokens, {texts[i]!r} and {text!r}")
    special = {int(i) for i, token in tokens if isinstance(token, dict) and token.get("special")}
    return ids, special


def _entry(folder: Path, text: Any, i: Any) -> tuple[str, int]:
    """A token and its id, which as a key of JSON is a text. Raises ValueError for what is none."""
    number = (type(i) is int and 0 <= i < 1 << 31) or (isinstance(i, str) and ID.fullmatch(i) is not None)
    if not isinstance(text, str) or not text or not number:
        raise ValueError(f"{folder}: added token {text!r} with id {str(i)[:40]!r}, expected a text and a number")
    return text, int(i)
