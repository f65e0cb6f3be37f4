"""Many prompts at once: rows that finish leave the batch, and prompts that wait take their place.

The rows of a batch go through the model together, so that its weights are read once for all of them. A row that has
finished goes on unseen, and costs its share of every step, until the others are gathered into a batch of their own,
which costs a copy of what the cache holds of them, and for each prompt that joins them a pass of its own. How long they
will go on nobody knows, so this is the problem of renting or buying skis: pay step by step until as much has been
wasted as gathering costs, about one step of all that go on, and then gather. No rule that knows as little does better
than twice the cost of one that knows all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minillm.engine.choosing import Chooser, finite
from minillm.engine.completion import Completion, Timings
from minillm.engine.inference import PREFILL_CHUNK, decode, decode_singly, prefill
from minillm.model.cache import Cache, ahead
from minillm.model.decoder import Decoder

MAX_BATCH = 32
PASS = 24  # tokens of a prompt: what reading all weights once costs, by measurement on a CPU (20 to 25)
LAG = 4  # steps that a GPU is ahead of what the host has read, so that it never waits to be asked


@torch.inference_mode()
def generate(
    model: Decoder,
    rows: Sequence[Completion],
    timings: Timings,
    max_batch: int = MAX_BATCH,
    deterministic: bool = False,
    lag: int | None = None,
) -> Iterator[tuple[int, str]]:
    """Run completions, at most `max_batch` at a time, until each has finished; yields (row, new text) as it comes.

    With `deterministic` a row's logits are bit for bit those that it gets alone, as each goes through the model by
    itself; else products of several rows may round otherwise. Stops are noticed `lag` steps late (default: 0 on a CPU),
    and what came behind them is thrown away. Raises ValueError where the logits of a row that goes on are not numbers
    to choose by.
    """
    if lag is None:
        lag = LAG if model.embedding.weight.device.type == "cuda" else 0
    batch, waiting = Batch(model, rows, timings, deterministic), deque(range(len(rows)))
    while waiting or batch.places:
        yield from batch.read(batch.outgrown())
        free = max_batch - len(batch.places)
        yield from batch.read([waiting.popleft() for _ in range(min(free, len(waiting)))])
        if batch.places:
            yield from batch.decode(lag)


class Batch:
    """The rows under way, by their number, and where the past of each lies: in which row of which cache."""

    def __init__(self, model: Decoder, rows: Sequence[Completion], timings: Timings, deterministic: bool):
        self.model, self.rows, self.timings, self.deterministic = model, rows, timings, deterministic
        self.places: dict[int, tuple[Cache, int]] = {}

    def outgrown(self) -> list[int]:
        """The rows whose next position changes how all before it are rotated: they must be read anew."""
        return [index for index, (cache, row) in self.places.items() if row in self.model.outgrown(cache)]

    def read(self, indices: list[int]) -> Iterator[tuple[int, str]]:
        """Prefill rows as far as they have come, and give each its next token."""
        for group in grouped([len(self.rows[index].sequence) for index in indices], singly=self.deterministic):
            members = [indices[each] for each in group]
            # What no other rows will join has all its room from the start, and is never copied.
            alone = self.deterministic or (len(members) == len(indices) and self.places.keys() <= {*indices})
            started = time.perf_counter()
            cache, tokens = self._prefilled([self.rows[index] for index in members], room=alone)
            seconds = time.perf_counter() - started
            if self.rows[members[0]].token_ids:  # anew: it is the price of one step
                self._count_step(len(members), seconds)
            else:
                self.timings.prompt_seconds += seconds
                self.timings.prompt_tokens += sum(len(self.rows[index].prompt) for index in members)
            self.places |= {index: (cache, row) for row, index in enumerate(members)}
            yield from self._push(members, tokens)
        self._drop()

    def decode(self, lag: int) -> Iterator[tuple[int, str]]:
        """Decode until all have finished, or the batch had better be formed anew."""
        members = list(self.places)
        rows = [self.rows[index] for index in members]
        room = (min if self.deterministic else max)(row.remaining for row in rows)
        room = ahead(max(cache.length for cache, _ in self.places.values()), room)
        started = time.perf_counter()
        caches = self._gathered(room)
        choose = Chooser(self.model, rows)
        tokens = torch.tensor([row.token_ids[-1] for row in rows], device=caches[0].device)
        self.timings.decode_seconds += time.perf_counter() - started
        pending: deque[Fetched] = deque()
        going, issued, wasted = True, 0, 0
        while True:
            active = sum(row.finish_reason is None for row in rows)
            wasted += len(rows) - active
            lost = wasted > 0 if self.deterministic else wasted >= active
            going = going and issued < room and not lost and not any(map(self.model.outgrown, caches))
            if not active or not (going or pending):
                break
            started = time.perf_counter()
            if going:
                tokens = choose(self._step(tokens.clamp(min=0), caches))
                pending.append(Fetched(tokens))
                issued += 1
            found = pending.popleft().read() if len(pending) > lag or not going else None
            seconds = time.perf_counter() - started
            if found is None:
                self.timings.decode_seconds += seconds
            else:
                self._count_step(active, seconds)
                yield from self._push(members, found)
        self._drop()

    def _prefilled(self, rows: list[Completion], room: bool) -> tuple[Cache, list[int]]:
        sequences, weight = [row.sequence for row in rows], self.model.embedding.weight
        width = max(map(len, sequences))
        cache = Cache(
            self.model.spec,
            batch=len(rows),
            capacity=width + (ahead(width, max(row.remaining for row in rows)) if room else 0),
            dtype=self.model.dtype,
            device=weight.device,
            padding=[width - len(sequence) for sequence in sequences],
        )
        return cache, Chooser(self.model, rows)(prefill(self.model, sequences, cache)).tolist()

    def _gathered(self, room: int) -> list[Cache]:
        """The caches of the rows: one for all, or with `deterministic` one each, as if each were alone."""
        if self.deterministic:
            caches = [cache for cache, _ in self.places.values()]
            for cache in caches:
                cache.reserve(room)
            return caches
        sources = list(self.places.values())
        cache = sources[0][0]
        cache.regroup(sources, room)
        self.places = {index: (cache, row) for row, index in enumerate(self.places)}
        return [cache]

    def _step(self, tokens_B: Tensor, caches: list[Cache]) -> Tensor:
        if self.deterministic:
            return decode_singly(self.model, tokens_B, caches)
        return decode(self.model, tokens_B, caches[0])

    def _push(self, members: list[int], tokens: list[int]) -> Iterator[tuple[int, str]]:
        going = [pair for pair in zip(members, tokens, strict=True) if self.rows[pair[0]].finish_reason is None]
        finite([token for _, token in going])
        for index, token in going:
            if piece := self.rows[index].push(token):
                yield index, piece

    def _count_step(self, tokens: int, seconds: float) -> None:
        self.timings.decode_tokens += tokens
        self.timings.decode_steps += 1
        self.timings.decode_seconds += seconds

    def _drop(self) -> None:
        self.places = {i: place for i, place in self.places.items() if self.rows[i].finish_reason is None}


def grouped(lengths: Sequence[int], singly: bool = False) -> list[list[int]]:
    """Which prompts are read in one pass, longest first: a shorter one joins as long as the padding that it needs costs
    less than the pass that it saves, and all fit into one piece."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        latest = groups[-1] if groups and not singly else []
        width = lengths[latest[0]] if latest else 0
        if latest and width - lengths[index] < PASS and (len(latest) + 1) * width <= PREFILL_CHUNK:
            latest.append(index)
        else:
            groups.append([index])
    return groups


class Fetched:
    """Tokens `[B]` on their way to the host; on a CPU they are there."""

    def __init__(self, tokens_B: Tensor):
        self.tokens_B, self.arrived = tokens_B, None
        if tokens_B.device.type == "cuda":
            self.tokens_B = torch.empty(tokens_B.shape, dtype=tokens_B.dtype, pin_memory=True)
            self.tokens_B.copy_(tokens_B, non_blocking=True)
            self.arrived = torch.cuda.current_stream(tokens_B.device).record_event()

    def read(self) -> list[int]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tokens_B.tolist()
