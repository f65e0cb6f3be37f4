"""Decode steps of random models in published shapes: what share of the bandwidth of a copy they reach; and many
sequences of many lengths at once through the loop of `engine/engine.py`."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from minillm.bench.throughput import drawn
from minillm.engine.batching import running
from minillm.engine.completion import Completion, Timings
from minillm.engine.graphs import step
from minillm.model.costs import bytes_per_step, cached_values_seen
from minillm.report.measure import peak_memory
from tests.gpu_report.models import Models, decode_seconds, full_cache, heard, recorded, refusal, with_kernels
from tests.gpu_report.timing import Marks
from tests.gpu_report.worker import Item, Run

POINTS = {  # shape -> (rows, positions before)
    "llama-3.1-8b": ((1, 512), (1, 8192), (8, 2048), (32, 8192)),
    "qwen3-0.6b": ((1, 512),),
    "deepseek-v2-lite": ((1, 512), (1, 8192), (32, 8192)),
    "mixtral-8x7b": ((1, 512), (8, 512)),
}
STEPS, ALONE = 48, 8  # timed steps, and of these call by call
SERVED = "qwen3-0.6b"
SEQUENCES, LEAST, MOST = 256, 100, 1024  # as `bench throughput`
SECONDS, EACH = 75.0, 5.0  # that throughput may take, and between its rows


def items(run: Run) -> list[Item]:
    models, found = Models(run), list[Item]()
    for shape, points in POINTS.items():
        for rows, context in points:
            call = partial(decoding, run, models, shape, rows, context)
            found.append((f"{shape}, {rows} behind {context}", partial(with_kernels, run, call)))
        if shape == SERVED:
            found.append((f"{shape}, throughput", partial(with_kernels, run, partial(throughput, run, models))))
    return found


def decoding(run: Run, models: Models, shape: str, rows: int, context: int, without: list[str]) -> None:
    """One row: the median step, replayed and call by call, and the bytes that it must read at least."""
    steps, alone = (1, 1) if run.rehearse else (STEPS, ALONE)
    rows, context = (min(rows, 2), min(context, 40)) if run.rehearse else (rows, context)
    model = models(shape, without)
    cache = full_cache(run, model, rows, context, steps + alone + 8)
    tokens = torch.randint(model.spec.vocab_size, (rows,), device=run.device)
    with heard() as said:
        seconds = decode_seconds(run, model, cache, tokens, steps)
    marks = Marks(run.device)
    with torch.inference_mode():
        for _ in range(alone + 1):
            marks.mark()
            step(model, tokens, cache).argmax(-1)
    cached = rows * cached_values_seen(model.spec, context) * model.dtype.itemsize
    nbytes = bytes_per_step(model, rows) + cached
    values: dict[str, Any] = {
        "layers": len(model.layers), "ms": seconds * 1e3, "tok/s": rows / seconds, "GB": nbytes / 1e9,
        "GB/s": nbytes / seconds / 1e9, "of copy": run.copy and nbytes / seconds / run.copy,
        "graph": recorded(cache), "ms call by call": marks.median() * 1e3, "peak GB": peak_memory(run.device) / 1e9,
    }  # fmt: skip
    run.row(values, None if recorded(cache) or "attention" in without else False, refusal(said))


class Counted(Completion):
    """Its tokens are told one by one, though there is no text."""

    def push(self, token: int) -> str:
        super().push(token)
        return " "


def throughput(run: Run, models: Models, without: list[str]) -> None:
    """New tokens per second of requests that wait for nothing; a row every few seconds, so that a cut leaves one."""
    model = models(SERVED, without)
    sequences, least, most = (2, 2, 3) if run.rehearse else (SEQUENCES, LEAST, MOST)
    until = min(time.monotonic() + SECONDS, run.deadline - 2)
    warm(model, sequences, min(least, 8))
    rows = requests(model, sequences, least, most, 0)
    wanted, prompt = sum(row.max_new_tokens for row in rows), sum(len(row.prompt) for row in rows)
    timings, began, told, count = Timings(), time.monotonic(), time.monotonic(), 0

    def tell(now: float) -> None:
        seconds = now - began
        values = {"sequences": sequences, "prompt tokens": prompt, "new tokens": count, "of": wanted, "s": seconds}
        values |= {"new tok/s": count / seconds, "s of prompts": timings.prompt_seconds}
        values |= {"rows a step": timings.decode_tokens / max(timings.decode_steps, 1)}
        values |= {"decode tok/s": timings.decode_tokens / max(timings.decode_seconds, 1e-9)}
        run.row(
            {**values, "peak GB": peak_memory(run.device) / 1e9}, message="" if count == wanted else "not to the end"
        )

    for _ in running.generate(model, rows, timings, max_rows=sequences):
        count, now = count + 1, time.monotonic()
        if now - told > EACH or now > until:
            tell(now)
            told = now
        if now > until:
            return
    tell(time.monotonic())


def warm(model: Any, sequences: int, tokens: int) -> None:
    for _ in running.generate(model, requests(model, min(sequences, 4), tokens, tokens, 1), Timings(), sequences):
        pass


def requests(model: Any, sequences: int, least: int, most: int, seed: int) -> list[Counted]:
    made = drawn(model, sequences, least, most, seed)  # of an LLM it takes the spec
    return [Counted(row.prompt, row.sampling, row.max_new_tokens) for row in made]
