"""Completions from their beginnings to their ends, in an engine that is made for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from minillm.engine.batching.engine import Engine
from minillm.engine.batching.guessing import Guesser
from minillm.engine.batching.request import Request
from minillm.engine.batching.room import BUDGET, MAX_ROWS, room_for
from minillm.engine.completion import Completion, Timings
from minillm.model.decoder import Decoder


@torch.inference_mode()
def generate(
    model: Decoder,
    rows: Sequence[Completion],
    timings: Timings,
    max_rows: int = MAX_ROWS,
    deterministic: bool = False,
    lag: int | None = None,
    guesser: Callable[[int, int], Guesser] | None = None,
) -> Iterator[tuple[int, str]]:
    """Run completions, at most `max_rows` at a time, until each has finished; yields (row, new text) as it comes. What
    has the same prompt takes it over from the first of them.
    A `guesser` is made for so many positions and rows. Raises ValueError where a row cannot go on: its logits are not
    numbers to choose by, or the cache has no room."""
    max_rows = min(max_rows, len(rows))
    positions, share = room_for(model, rows, max_rows), len(rows) > 1
    made = guesser and guesser(positions, max_rows)
    engine = Engine(model, positions, max_rows, BUDGET, deterministic, share, lag, timings=timings, guesser=made)
    numbers: dict[Request, int] = {}
    firsts: dict[Any, Request] = {}
    for index, row in enumerate(rows):
        alike = row.asked.adapter, tuple(row.prompt), row.inserted and row.inserted.digest
        request = engine.add(row, leader=firsts.get(alike))
        firsts.setdefault(alike, request)
        numbers[request] = index
    while engine.busy:
        for request, text in engine.step():
            if request.error:
                raise ValueError(request.error)
            if text:
                yield numbers[request], text
