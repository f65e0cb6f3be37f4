"""JSON by strangers, as RFC 8259 has it, with limits on what a parser makes of it.

Python's own parser takes more: the last of two equal keys, NaN, halves of surrogate pairs, numbers that no float holds,
and it guesses encodings. Another program would see another file then.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from minillm.guard.files import read_bytes, utf8

MAX_BYTES = 32_000_000
MAX_NODES = 2_000_000  # values and brackets: of a hundred bytes each when parsed
MAX_DEPTH = 100
MAX_DIGITS = 300  # of a whole number: any that a float holds
INFINITE = {"time_step_limit"}  # published configs have the word Infinity there, which is no JSON
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """A JSON object from a file, with or without a byte order mark. Raises ValueError when it is too large or is
    anything else."""
    text = utf8(read_bytes(path, limit), str(path)).removeprefix("\ufeff")
    content = parsed(text, str(path), "; download it again")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def parsed(text: str, source: str, advice: str = "") -> Any:
    """The value of a JSON text. Raises ValueError for what is none, or too much."""
    if (nodes := sum(map(text.count, ",[{"))) > MAX_NODES:
        raise ValueError(f"{source}: {nodes:,} values, more than the {MAX_NODES:,} such a file may have")
    reader = _Reader()
    try:
        value = reader.decoder.decode(text)
        _check_depth(value)
        if SURROGATE.search(text):
            _check_texts(value)
    except RecursionError:
        raise ValueError(f"{source}: not valid JSON (nested too deeply){advice}") from None
    except ValueError as error:
        raise ValueError(f"{source}: not valid JSON ({str(error)[:200]}){advice}") from None
    if reader.infinities:
        raise ValueError(f"{source}: not valid JSON (Infinity is no number){advice}")
    return value


class _Reader:
    def __init__(self) -> None:
        self.infinities = 0  # that no key accounts for
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_int=_integer, parse_float=_float, parse_constant=self._constant
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {twice[:80]!r} stands there twice")
        if self.infinities:
            for key in INFINITE & set(made):
                values = made[key] if isinstance(made[key], list) else [made[key]]
                self.infinities -= sum(value == math.inf for value in values)
        return made

    def _constant(self, name: str) -> float:
        if name != "Infinity":
            raise ValueError(f"{name} is no number")
        self.infinities += 1
        return math.inf


def _integer(digits: str) -> int | float:
    if digits == "-0":  # no whole number to other readers, which keep the sign
        return -0.0
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]}, which no float holds")
    return value


def _check_depth(value: Any) -> None:
    """Level by level, so that this takes no stack itself."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level = [child for each in inside for child in each if isinstance(child, (dict, list))]
        if not level:
            return
    raise RecursionError


def _check_texts(value: Any) -> None:
    if isinstance(value, str):
        value.encode()  # a UnicodeEncodeError, which is a ValueError, for half of a pair
    elif isinstance(value, (list, dict)):
        for each in value if isinstance(value, list) else (*value, *value.values()):
            _check_texts(each)
