"""The recorded cases: tiny checkpoints in the published spelling, what transformers made of pictures and sounds."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import minillm
from minillm.engine import decoding
from minillm.engine.asked import Asked
from minillm.engine.batching import running
from minillm.engine.completion import Completion, Timings
from minillm.llm import LLM
from tests.conftest import shared

PICTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "mistral3")
CASES = [
    *((folder, case) for folder in PICTURES for case in ("image", "behind", "text")),
    *(("qwen2_audio", case) for case in ("audio", "text")),
]
WITH_MEDIA = [pair for pair in CASES if pair[1] != "text"]


@functools.cache
def loaded(name: str) -> LLM:
    return minillm.load(shared(f"media/{name}"))


@functools.cache
def outputs(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = shared(f"media/{name}/expected")
    return json.loads((folder / "outputs.json").read_text())["cases"], load_file(folder / "outputs.safetensors")


def expected(name: str, case: str) -> dict[str, Tensor]:
    """What was recorded of a case, by the names of the README."""
    found = outputs(name)[1]
    return {key.removeprefix(f"{case}."): value for key, value in found.items() if key.startswith(f"{case}.")}


def messages(name: str, case: str) -> list[dict[str, Any]]:
    """The conversation of a case, with paths that are there."""
    made = json.loads(json.dumps(outputs(name)[0][case]["messages"]))
    for message in made:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if "path" in part:
                part["path"] = str(shared("media") / part["path"])
    return made


def picture(name: str = "landscape.png") -> Path:
    return shared(f"media/inputs/{name}")


def run(llm: LLM, rows: list[Completion], budget: int = running.BUDGET, **options: Any) -> list[Tensor]:
    """Rows to their ends, in passes of at most `budget` tokens -> the logits `[T, V]` of each prompt."""
    seen: list[dict[int, Tensor]] = [{} for _ in rows]
    for row, found in zip(rows, seen, strict=True):

        def reader(at: int, x: Tensor, found: dict[int, Tensor] = found) -> None:
            found[at] = llm.model.logits(x[None])[0]

        row.asked = Asked(reader=reader)
    before, running.BUDGET = running.BUDGET, budget
    try:
        list(decoding.run(llm, rows, Timings(), **options))
    finally:
        running.BUDGET = before
    return [torch.cat([found[at] for at in sorted(found)]) for found in seen]


# Outputs were recorded without the penalty that generation_config.json may have.
GREEDY: dict[str, Any] = {"ignore_eos": True, "temperature": 0, "repetition_penalty": 1.0}


def greedy(llm: LLM, count: int, **prompt: Any) -> Completion:
    return llm.completion(**prompt, max_new_tokens=count, **GREEDY)
