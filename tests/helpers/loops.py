"""Completions of drawn decoders, and what the model said before each of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from minillm import ops
from minillm.engine.completion import Completion, Timings
from minillm.engine.sampling import Sampling
from minillm.model.decoder import Decoder
from minillm.ops.draw import sample
from minillm.spec import Decoder as Spec
from tests.helpers.specs import build

Run = Callable[[Decoder, list[Completion], Timings], Iterator[tuple[int, str]]]


@dataclass
class Heard:
    """The logits behind every draw, by the row's seed and the token's number; of several the last. And how many rows
    went through each time."""

    logits: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)

    def sample(self, logits_BV: Tensor, *settings: Tensor) -> Tensor:
        keys = zip(settings[-2].tolist(), settings[-1].tolist(), strict=True)
        self.logits |= {key: logits_V.clone() for key, logits_V in zip(keys, logits_BV, strict=True)}
        self.batches.append(len(logits_BV))
        return sample(logits_BV, *settings)


def listening(
    spec: Spec, dtype: torch.dtype = torch.float32, seed: int = 0, compiled: bool = True
) -> tuple[Decoder, Heard]:
    """A drawn decoder on the ops that a CPU gets: with loops and tapes, or where those are missing."""
    heard = Heard()
    chosen = ops.select("auto", torch.device("cpu"), dtype) if compiled else ops.CPU
    model = build(spec, seed, replace(chosen, sample=heard.sample))
    for name, parameter in model.named_parameters():
        if ".router." not in name:  # which is fp32 whatever the rest is
            parameter.data = parameter.data.to(dtype)
    return model, heard


class Silent:
    """Guesses nothing, so that a loop with guesses goes token by token."""

    def propose(self, row: Completion, count: int) -> list[int]:
        return []


def requests(prompts: list[list[int]], most: int, stops: set[int] = frozenset(), **sampling: Any) -> list[Completion]:
    """Row i may write up to `most` tokens, less what it has in common with i, and draws with seed i."""
    return [
        Completion(prompt, Sampling(seed=i, **sampling), max(1, most - i % 4), frozenset(stops))
        for i, prompt in enumerate(prompts)
    ]


def texts(rows: list[Completion]) -> list[tuple[list[int], str | None]]:
    return [(row.token_ids, row.finish_reason) for row in rows]
