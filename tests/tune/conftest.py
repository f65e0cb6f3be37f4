"""What runs of the command learn from, and how long they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minillm.tune import job

ADAPTER = "adapter_model.safetensors"
STEPS = ["--steps", "6", "--batch", "4", "--micro-batch", "2", "--rate", "5e-3", "--every", "2"]
QUICK = [*STEPS, "--rank", "4"]


def talk(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def written(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return str(path)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer at the end has few tokens, which else take as long as six steps do."""
    monkeypatch.setattr(job, "ANSWER", 4)


@pytest.fixture
def data(tmp_path: Path) -> str:
    said = [talk(f"What is {n} and {n}?", f"It is {n + n}, said the owl. " * (1 + n % 3)) for n in range(10)]
    return written(tmp_path / "train.jsonl", [{"messages": each} for each in said])


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    asked = [[{"role": "user", "content": f"Say {n}"}] for n in range(6)]
    lines = [{"prompt": p, "chosen": talk("", f"It is {n}.")[1:], "rejected": talk("", f"No {n}!")[1:]}
             for n, p in enumerate(asked)]  # fmt: skip
    return written(tmp_path / "pairs.jsonl", lines)


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]
