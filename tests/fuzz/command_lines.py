"""Arguments of every command, from its own parser, with odd values."""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

from minillm import cli
from tests.fuzz.case import Case

# What takes a process of its own, other engines, half a minute to say that all is well, or does not end by itself.
LEFT_OUT = {"bench", "harness", "diff", "serve"}
COMMANDS = tuple(sorted(set(cli.COMMANDS) - LEFT_OUT))
ODD = [
    "", "0", "-1", "1", "2", "7", "64", "65", "1.5", "nan", "inf", "-inf", "1e-400", "1e400", "9" * 400, "9" * 5000,
    "٣", "1_000", "１", " 5", "0x10", "1,2", "1,,2", ",", "1,2,3", "-0", "true", "x", "\x1b[31m", "a\nb", "\u202e",
    "\udcff", "x" * 5000, "~", "/proc/self/mem", "/", ".", "..", "nowhere", "{d}", "{d}/config.json",
    "{d}/tokenizer.json", "{d}/x", "{d}/model.safetensors", "org/name", "org/name@x", "@", "a/b/c", "cuda:99", "cpu:5",
    "cpu", "meta", "mps", "[" * 20_000, '{"a": 1}', '{"messages": 1}', "{}", "null", "temperature=1",
    "temperature=x,top_k=", "24GB", "0GB", "1e30GB", "H100", "-", "int8", "int4", "fp8", "float32", "reference",
    "transformers", "%s", "{0}", "--", "=", "the", "all",
]  # fmt: skip
BASE = {
    "generate": "--weights {d} --prompt the --max-new-tokens 2 --kernels reference",
    "explain": "--weights {d}",
    "plan": "--weights {d}",
    "quantize": "--weights {d} --quantize int8 --output made",
    "merge": "--weights {d} --adapter {d}/adapter --output made",
    "perplexity": "--weights {d} --text {d}/config.json --kernels reference",
    "lens": "--weights {d} --prompt the --kernels reference",
    "tune": "--weights {d} --data {d}/config.json --show 1",
    "routes": "--weights {d} --text {d}/config.json --kernels reference",
}


def cases(seed: int) -> Iterator[Case]:
    chance = random.Random(f"command lines {seed}")
    while True:
        command = chance.choice(COMMANDS)
        actions = [each for each in parser(command)._actions if each.option_strings]
        argv = BASE[command].split()
        for _ in range(chance.randint(1, 3)):
            argv += _given(chance, chance.choice(actions))
        if chance.random() < 0.2:
            del argv[chance.randrange(len(argv))]
        if chance.random() < 0.1:
            argv.insert(chance.randrange(len(argv) + 1), chance.choice(ODD))
        argv = [each.replace("\0", "") for each in argv]
        yield Case(" ".join([command, *argv])[:120], [command, *argv])


def _given(chance: random.Random, action: argparse.Action) -> list[str]:
    flag = chance.choice(action.option_strings)
    if action.nargs == 0:
        return [flag]
    count = chance.choice((0, 1, 2)) if action.nargs in ("*", "+", "?") else 1
    known = [each for each in action.choices or () if each != "auto"]  # whose kernels take long to be compiled once
    values = [str(chance.choice([*known, *ODD])) for _ in range(count)]
    return [f"{flag}={values[0]}"] if values and chance.random() < 0.3 else [flag, *values]


@functools.cache
def parser(command: str) -> argparse.ArgumentParser:
    """What a command reads its arguments with."""
    found: list[argparse.ArgumentParser] = []

    def parse_args(self: argparse.ArgumentParser, *given: Any) -> None:
        found.append(self)
        raise SystemExit(0)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args), contextlib.suppress(SystemExit):
        cli.command(command)([])
    return found[0]
