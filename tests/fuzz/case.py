"""A case: the files of a folder, and the command that is to bear them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.honest import FILES

GENERATE = "generate --weights {d} --prompt the --max-new-tokens 2 --json --kernels reference".split()
CHAT = "generate --weights {d} --chat --prompt the --max-new-tokens 2 --kernels reference".split()
EXPLAIN = "explain --weights {d} --json".split()
PLAN = "plan --weights {d} --json".split()


@dataclass(frozen=True)
class Case:
    """`argv` is a command of minillm and its arguments, where `{d}` stands for the folder. `files` are laid over the
    honest ones; None is a file that is left out."""

    name: str
    argv: list[str]
    files: Mapping[str, bytes | None] = field(default_factory=dict)

    def write(self, folder: Path) -> list[str]:
        """Lay the files out in an empty folder; the arguments for it."""
        for name, data in {**FILES, **self.files}.items():
            if data is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        return [each.replace("{d}", str(folder)) for each in self.argv]


Cases = Callable[[int], Iterator[Case]]


class Raw(str):
    """JSON text that stands for itself, such as NaN."""


SMALL = [None, True, False, 0, 1, -1, 2, 0.5, "", "x", [], {}, [1], {"a": 1}]
LARGE = [3, 7, 64, 2**20, 2**31 - 1, 2**31, 2**63, 10**30, 10**400, -(2**63), -0.0, 1e-320, 1e308, 0.1, 3.5]
WORDS = ["fp8", "true", "1", "linear", "float32", "\x1b[31mred", "\u202e", "é", "x" * 3000, "__class__", "../x", "٣"]
NESTED = [[None], [[]], [{}], ["x", 1], [[1, 2], [3]], {"": ""}, {"type": "x"}, {"rope_type": []}, [0] * 500]
LONG = ("[" * 3000 + "]" * 3000, "1" * 5000, "0" * 5000 + "1", "1." + "1" * 5000)
RAW = [Raw(text) for text in ("NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', *LONG)]


def odd(chance: random.Random) -> Any:
    """A value that a key may not expect."""
    return chance.choice(chance.choices([SMALL, LARGE, WORDS, NESTED, RAW], [5, 4, 3, 3, 1])[0])


def text_of(value: Any) -> str:
    """JSON, with `Raw` as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {text_of(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text_of, value)) + "]"
    return json.dumps(value)


def damaged(chance: random.Random, text: str) -> bytes:
    """A JSON text, now and then with a key twice, in another encoding, or cut off."""
    data = text.encode()
    kind = chance.randrange(40)
    if kind == 0:
        return codec(chance, text)
    if kind == 1:
        return data[: chance.randrange(len(data) + 1)]
    if kind == 2 and ":" in text:  # the first key once more, with something else
        key = text[1 : text.index(":")]
        return f"{{{key}: {text_of(odd(chance))}, {text[1:]}".encode()
    if kind == 3:
        at = chance.randrange(len(data))
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    return data


def codec(chance: random.Random, text: str) -> bytes:
    return text.encode(chance.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7")))


def changed(chance: random.Random, values: dict[str, Any], keys: list[str], most: int = 3) -> dict[str, Any]:
    """A copy of an object with some keys given odd values, and some left out."""
    values = dict(values)
    for key in chance.sample(keys, min(len(keys), chance.randint(1, most))):
        if key in values and chance.random() < 0.1:
            del values[key]
        else:
            values[key] = odd(chance)
    return values


def anywhere(chance: random.Random, value: Any, times: int = 1) -> Any:
    """A copy of a JSON value in which something at any depth is another."""
    for _ in range(times):
        value = _replaced(chance, value)
    return value


def _replaced(chance: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.1:
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: _replaced(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [*value[:at], _replaced(chance, value[at]), *value[at + 1 :]]
    return odd(chance)
