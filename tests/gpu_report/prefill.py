"""A long prompt at the shape of Llama-3.1-8B, in pieces as the engine reads it and at once: what share of the rate of a
large matrix product it reaches."""

from __future__ import annotations

from functools import partial

import torch

from minillm.engine import inference
from minillm.model.cache import Cache
from minillm.model.costs import prefill_flops
from minillm.report.measure import peak_memory
from tests.gpu_report.models import Models, with_kernels
from tests.gpu_report.timing import Marks
from tests.gpu_report.worker import Item, Run

SHAPE, TOKENS, ROUNDS = "llama-3.1-8b", 8192, 5


def items(run: Run) -> list[Item]:
    models = Models(run)
    pieces = {f"{SHAPE}, {TOKENS} in pieces of {inference.PREFILL_CHUNK}": False, f"{SHAPE}, {TOKENS} at once": True}
    return [
        (name, partial(with_kernels, run, partial(reading, run, models, at_once))) for name, at_once in pieces.items()
    ]


@torch.inference_mode()
def reading(run: Run, models: Models, at_once: bool, without: list[str]) -> None:
    tokens, rounds = (24, 1) if run.rehearse else (TOKENS, ROUNDS)
    model, marks = models(SHAPE, without), Marks(run.device)
    cache = Cache(model.spec, 1, tokens, model.dtype, run.device)
    prompt = torch.randint(model.spec.vocab_size, (1, tokens)).tolist()
    given = torch.tensor(prompt, device=run.device)
    for turn in range(rounds + 2):
        if turn > 0:  # the first compiles and tunes
            marks.mark()
        if turn > rounds:
            break
        cache.length = 0
        if at_once:
            model(given, cache, last_only=True)
        else:
            inference.prefill(model, prompt, cache)
    seconds, flops = marks.median(), prefill_flops(model, tokens)
    values = {"ms": seconds * 1e3, "tok/s": tokens / seconds, "TFLOP": flops / 1e12, "TFLOP/s": flops / seconds / 1e12}
    values |= {"of peak": run.peak and flops / seconds / run.peak, "peak GB": peak_memory(run.device) / 1e9}
    run.row(values)
