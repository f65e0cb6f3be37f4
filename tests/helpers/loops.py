"""Completions of drawn decoders, and what the model said before each of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from minillm import ops
from minillm.engine.batching.guessing import Guesser, Proposer
from minillm.engine.choosing import Chooser
from minillm.engine.completion import Completion, Timings
from minillm.engine.sampling import Sampling
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder
from minillm.ops.draw import sample
from minillm.spec import Decoder as Spec
from minillm.spec import LongRopeScaling
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
        if ".router." not in name or ".streams." in name:  # that of experts is fp32 whatever the rest is
            parameter.data = parameter.data.to(dtype)
    return model, heard


def contiguous(model: Decoder, row: Completion) -> None:
    """A completion token by token over a cache of its own: what blocks and batches must not change. Where LongRoPE
    begins to turn all keys otherwise, all is read anew."""
    device = model.embedding.weight.device
    cache, limits = None, {each.scaling.original_positions for each in model.spec.ropes
                          if isinstance(each.scaling, LongRopeScaling)}  # fmt: skip
    while row.finish_reason is None:
        sequence = row.sequence
        if cache is None or cache.length in limits:
            cache = Cache(model.spec, 1, len(row.prompt) + row.max_new_tokens, model.dtype, device)
            cache.prompt_length = len(sequence)
        with torch.inference_mode():
            logits_1V = model(torch.tensor([sequence[cache.length :]]), cache, last_only=True)[:, -1]
            row.push(int(Chooser(model, [row])(logits_1V)))


def always(proposer: Proposer, count: int) -> Guesser:
    """Guesses whether they pay or not."""
    made = Guesser(proposer, count)
    made._pays = lambda *_: True
    return made


def requests(prompts: list[list[int]], most: int, stops: set[int] = frozenset(), **sampling: Any) -> list[Completion]:
    """Row i may write up to `most` tokens, less what it has in common with i, and draws with seed i."""
    return [
        Completion(prompt, Sampling(seed=i, **sampling), max(1, most - i % 4), frozenset(stops))
        for i, prompt in enumerate(prompts)
    ]


def texts(rows: list[Completion]) -> list[tuple[list[int], str | None]]:
    return [(row.token_ids, row.finish_reason) for row in rows]
