"""What a tokenizer.json says beside its model, read from its bytes: before the library, which runs it as it reads."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

HEADS = (1 << 18, 1 << 22)  # bytes before the model: ten thousand added tokens have fewer
KEYS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
OBJECT = re.compile(rb":\s*[\[{]")
BETWEEN = re.compile(r"\s*([{:,])\s*")


def head(data: bytes) -> dict[str, Any] | None:
    """The parts but for the model, which is not read where it is the last one. None where something is said twice: of
    two the library may take the other one."""
    for size in HEADS:
        text = data[:size].decode("utf-8", "ignore")
        with contextlib.suppress(ValueError, RecursionError):
            found, at = _parts(text)
            if not _has_later(data, len(text[:at].encode())):
                return found
            break
    try:
        whole = json.loads(data, object_pairs_hook=_once)
        return {key: value for key, value in whole.items() if key != "model"}
    except (AttributeError, ValueError, RecursionError):
        return None


def values(data: bytes, key: bytes) -> Iterator[tuple[int, int]]:
    """Where the values of a key lie, texts with their quotes. A key with a number is a word of the vocabulary."""
    pattern = re.compile(rb'"\s*:\s*("(?:[^"\\]|\\.)*"|[^\s,}\]]*)')
    at = data.find(key)
    while at >= 0:
        if (found := pattern.match(data, at + len(key))) and not found[1].isdigit():
            yield found.span(1)
        at = data.find(key, at + 1)


def text(literal: bytes) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:
        return literal.decode("utf-8", "replace")


def hides_letters(data: bytes) -> bool:
    """Whether a letter, of a key perhaps, stands there as \\u0061 does."""
    at = data.find(b"\\u00")
    while at >= 0:
        code = data[at + 4 : at + 6].lower()
        before = data[max(0, at - 64) : at]
        escaped = (len(before) - len(before.rstrip(b"\\"))) % 2
        if not escaped and code[:1] in b"4567" and code not in (b"7f", b"60", b"40"):
            return True
        at = data.find(b"\\u00", at + 4)
    return False


def _parts(text: str) -> tuple[dict[str, Any], int]:
    """Keys and values of an object up to "model", and where the value of that begins."""
    reader = json.JSONDecoder(object_pairs_hook=_once)
    found: dict[str, Any] = {}
    at = _behind(text, 0, "{")
    while True:
        key, at = reader.raw_decode(text, at)
        at = _behind(text, at, ":")
        if key == "model":
            return found, at
        if key in found:
            raise ValueError("a key twice")
        found[key], at = reader.raw_decode(text, at)
        at = _behind(text, at, ",")


def _has_later(data: bytes, at: int) -> bool:
    """Whether one of the parts stands behind a place, too."""
    ends = tuple(f'"{key}"'.encode() for key in KEYS)
    starts = (found.start() for found in OBJECT.finditer(data, at))
    return any(data[max(start - 4096, at) : start].rstrip().endswith(ends) for start in starts)


def _behind(text: str, at: int, sign: str) -> int:
    match = BETWEEN.match(text, at)
    if match is None or match[1] != sign:
        raise ValueError(f"no {sign}")
    return match.end()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key twice")
    return made
