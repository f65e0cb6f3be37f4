"""README.md: the YAML in front of a model card."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.fuzz.case import PLAN, Case, codec

KEYS = ["license", "license_name", "license_link", "license", "licence", "tags", '"license"', "? license", "LICENSE"]
SCALARS = [
    "mit", "apache-2.0", "other", "llama3.1", "", "~", "null", "true", "5", "1e400", "2024-13-45",
    "2001-12-14t21:59:43.10-05:00", "0x", "0b2", "1_000", "_", "-", ".inf", "12:30:45", "190:20:30", "=", "<<",
    "\"\\x1b]0;x\\a\"", "'\u202e'", "\"\\ud800\"", "maybe", "%", "@x", "`x`", "[", "{a: b", "|\n  text\n  more",
    ">-\n  x", "\"unended", "a: b: c", "\t", "&a x", "*a", "é", "x" * 900, "- - - x",
    "!!python/object/apply:os.system [x]",
]  # fmt: skip
TAGS = [
    "!!timestamp", "!!int", "!!bool", "!!float", "!!binary", "!!null", "!!str", "!!seq", "!!map", "!!set", "!!omap",
    "!!pairs", "!!python/name:os.system", "!x", "!", "!<x>", "!!", "!!merge", "!!value", "%TAG",
]  # fmt: skip
FIRST = ["%YAML 9.9", "<<: *a", "&a", "- x", "...", "---", "\0", "\ufeff", "  x: 1", "#" * 900]


def cases(seed: int) -> Iterator[Case]:
    chance = random.Random(f"cards {seed}")
    while True:
        lines = [f"{chance.choice(KEYS)}: {value(chance, 0)}" for _ in range(chance.randint(1, 4))]
        if chance.random() < 0.1:
            lines.insert(0, chance.choice(FIRST))
        begin = chance.choice(["---\n"] * 20 + ["--- \n", "---\r\n", "\n---\n", ""])
        end = chance.choice(["\n---\n"] * 9 + [""])
        text = begin + "\n".join(lines) + end + "# A model\n"
        data = text.encode("utf-8", "surrogatepass")
        if chance.random() < 0.05:
            data = chance.choice((codec(chance, text.encode("utf-8", "replace").decode()), data.replace(b" ", b"\xff")))
        yield Case(" | ".join(lines)[:100], PLAN, {"README.md": data})


def value(chance: random.Random, depth: int) -> str:
    scalar = chance.choice(SCALARS)
    if depth > 3 or chance.random() < 0.4:
        return scalar
    inner = value(chance, depth + 1)
    kinds = [
        f"{chance.choice(TAGS)} {scalar}",
        f"{chance.choice(TAGS)} {inner}",
        f"[{inner}, {scalar}]",
        f"{{{scalar}: {inner}}}",
        f"\n  - {inner}",
        f"\n  {scalar}: {inner}",
        f"&a {inner}",
        f"[{'[' * chance.choice((3, 300, 900))}",
    ]
    return chance.choice(kinds)
