"""The steps in their order, which is that of their importance: what comes later gets the time that is left."""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """`minutes` is its part of 12; `item_seconds` is how long one measurement may take before it counts as hung.
    `workers` processes share its measurements, where these are no times."""

    name: str
    title: str
    minutes: float
    item_seconds: float
    workers: int = 1


STEPS = (
    Step("machine", "the machine: versions, copy bandwidth, rate of a large matrix product", 1, 60),
    Step("ops", "every op against its problem in fp64, in bf16 and fp16, at two sizes", 2, 90, workers=8),
    Step("stories", "trained checkpoints through kernels and CUDA graphs: recorded logits, greedy ids", 1.5, 90, 4),
    Step("decode", "decode steps at published shapes as shares of the copy bandwidth; throughput", 3, 120),
    Step("prefill", "a prompt of 8192 tokens at the 8B shape", 0.75, 60),
    Step("kernels", "each kernel at published shapes, tuned; then PyTorch at the same", 2, 60),
    Step(
        "tests", "the rest of `make gpu`: each configuration, graphs bit for bit, more problems", 1.75, 240, workers=6
    ),
)
MINUTES = sum(step.minutes for step in STEPS)


def chosen(only: list[str]) -> dict[str, list[str]]:
    """The steps that `--only` names, each with the texts of which the names of its measurements must have one; the
    machine always comes first. ["ops", "decode/llama"] -> {"machine": [], "ops": [], "decode": ["llama"]}; nothing
    -> all. Raises ValueError for a step that is none."""
    names = [step.name for step in STEPS]
    if not only:
        return {name: [] for name in names}
    asked: dict[str, list[str]] = {}
    for part in only:
        name, _, text = part.partition("/")
        if name not in names:
            raise ValueError(f"--only {name!r} is no step; use {', '.join(names)}")
        asked.setdefault(name, []).append(text)
    return {"machine": []} | {name: [] if "" in asked[name] else asked[name] for name in names if name in asked}
