"""From logits to the next token: pure functions on one row of logits, in the order that transformers applies them.

penalties -> temperature -> top-k -> top-p -> min-p -> draw
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and the neutral penalties do nothing.

    `seed` makes the draws of a prompt reproducible, alone or in a batch. Raises ValueError outside `LIMITS`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}, it must be a number from {low} to {high}")
            if name in ("top_k", "seed") and value != int(value):
                raise ValueError(f"{name} is {value!r}, it must be a whole number")
        if self.top_p == 0:
            raise ValueError("top_p is 0, which leaves no token; use temperature 0 for greedy")

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a generation_config.json asks for: its sampling where `do_sample` is on, else greedy; and penalties."""
    names = {field.name for field in fields(Sampling)} - {"seed", "temperature"}
    stated = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    if not generation_config.get("do_sample"):
        return {**{name: value for name, value in stated.items() if name.endswith("penalty")}, "temperature": 0.0}
    temperature = generation_config.get("temperature")
    return {**stated, "temperature": 1.0 if temperature is None else temperature}


def penalise(logits_V: Tensor, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]) -> Tensor:
    """Repetition penalty over the prompt and the text (Keskar et al., arXiv:1909.05858): positive logits are divided
    by it, negative ones multiplied. Presence and frequency penalty over the generated text only, as OpenAI defines
    them: logit - presence * [count > 0] - frequency * count."""
    logits_V = logits_V.float().clone()
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *generated}), device=logits_V.device)
        scores = logits_V[seen]
        logits_V[seen] = torch.where(
            scores > 0, scores / sampling.repetition_penalty, scores * sampling.repetition_penalty
        )
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens, counts = torch.tensor(generated, device=logits_V.device).unique(return_counts=True)
        logits_V[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits_V


def probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """The distribution drawn from, fp32 `[V]`: softmax(logits / temperature), cut by top-k, then top-p, then min-p."""
    logits_V = logits_V.float() / sampling.temperature
    if 0 < sampling.top_k < logits_V.shape[-1]:
        least = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, float("-inf"))
    if sampling.top_p < 1:
        ascending, order = logits_V.sort()
        cut = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        cut[-1] = False  # the likeliest token always stays
        logits_V = logits_V.masked_fill(cut.scatter(0, order, cut), float("-inf"))
    chances_V = logits_V.softmax(-1)
    if sampling.min_p > 0:
        chances_V = chances_V.masked_fill(chances_V < sampling.min_p * chances_V.max(), 0.0)
        chances_V = chances_V / chances_V.sum()
    return chances_V


def choose(
    logits_V: Tensor,
    sampling: Sampling,
    prompt: Sequence[int],
    generated: Sequence[int],
    generator: torch.Generator | None,
) -> int:
    """The next token of one sequence; logits `[V]` of any dtype."""
    if sampling.penalised:
        logits_V = penalise(logits_V, sampling, prompt, generated)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial(probabilities(logits_V, sampling), 1, generator=generator))
