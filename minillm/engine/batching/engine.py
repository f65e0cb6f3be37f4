"""Requests in, tokens out: continuous batching (Yu et al., OSDI 2022) over a cache in blocks.

Each step is one pass of the model over a token of each request that is being decoded and pieces of those that are being
read (`scheduler.py`), with what each has in blocks that others may share (`store.py`). A request gets what it would get
alone, whatever else is under way: its settings, seed and history are its own (`choosing.py`).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minillm.engine.asked import LOGITS_AT_ONCE, scored
from minillm.engine.batching.flying import Fetched, Flying
from minillm.engine.batching.guessing import Guesser
from minillm.engine.batching.pace import Pace
from minillm.engine.batching.passes import Single, alone, mixed
from minillm.engine.batching.recorded import Recorded
from minillm.engine.batching.request import Request
from minillm.engine.batching.room import BUDGET, MAX_ROWS, SIZE, counts
from minillm.engine.batching.scheduler import Scheduler, Work
from minillm.engine.batching.store import Store
from minillm.engine.choosing import NOT_FINITE, Chooser
from minillm.engine.completion import Completion, Timings
from minillm.model.decoder import Decoder

LAG = 4  # steps that a GPU is ahead of what the host has read, so that it never waits to be asked

Found = list[tuple[Request, str]]  # requests that have a new token, each with the text that it adds


class Engine:
    """Runs requests over a model. `positions` is how many tokens of all requests together have room in the cache.

    With `deterministic` each request goes through the model by itself, in pieces of a fixed length, and its logits are
    bit for bit those that it has alone; else products of several rows may round otherwise. `share` lets requests use
    what others have computed of the same prefix. Tokens are read `lag` steps late (default: 0 on a CPU) while requests
    are only being decoded, and what came behind a stop is thrown away. With a `pace` prompts are read beside requests
    that are being decoded in pieces so small that a pass takes about so many seconds.
    """

    def __init__(
        self,
        model: Decoder,
        positions: int,
        max_rows: int = MAX_ROWS,
        budget: int = BUDGET,
        deterministic: bool = False,
        share: bool = True,
        lag: int | None = None,
        pace: float | None = None,
        timings: Timings | None = None,
        guesser: Guesser | None = None,
    ):
        self.model, self.deterministic, self.timings = model, deterministic, timings or Timings()
        self.device = model.embedding.weight.device
        self.lag = (LAG if self.device.type == "cuda" else 0) if lag is None else lag
        self.store = Store(model, counts(model, positions, max_rows, budget), budget, share and not deterministic)
        self.scheduler = Scheduler(self.store, max_rows, budget, fixed=deterministic)
        self.recorded = Recorded(model, self.store)
        self.pace = None if pace is None else Pace(pace)
        self.guesser = guesser
        self.numbers = itertools.count()
        self.chooser: tuple[list[Request], Chooser] | None = None
        self.flying: deque[Flying] = deque()
        self.drawn: Tensor | None = None  # the last of them, int64 [n]

    def add(self, row: Completion, **how: Any) -> Request:
        """Take in a request; `how` are fields of `Request`."""
        request = self.request(row, **how)
        self.scheduler.waiting.append(request)
        return request

    def request(self, row: Completion, **how: Any) -> Request:
        """A request with the next number, which is not taken in yet."""
        reader = row.asked.reader
        if row.asked.prompt_logprobs is not None:
            row.prompt_scores, reader = [None] * len(row.prompt), partial(self._score, row)
        return Request(row, number=next(self.numbers), reader=reader, **how)

    def _score(self, row: Completion, start: int, x_TE: Tensor) -> None:
        """Scores of the tokens of a prompt that follow hidden states from a position on."""
        following = row.prompt[start + 1 : start + 1 + len(x_TE)]
        size = max(LOGITS_AT_ONCE // self.model.spec.vocab_size, 1)
        for at in range(0, len(following), size):
            tokens = following[at : at + size]
            logits_NV = self.model.logits(x_TE[None, at : at + len(tokens)])[0]
            found = scored(logits_NV, tokens, row.asked.prompt_logprobs or 0)
            row.prompt_scores[start + at + 1 : start + at + 1 + len(tokens)] = found

    def check(self, row: Completion) -> None:
        """Raise ValueError for a request that can never come to its end."""
        needed, room = len(row.prompt) + row.max_new_tokens - 1, self.store.most()
        if needed > room:
            raise ValueError(
                f"the prompt has {len(row.prompt):,} tokens and {row.max_new_tokens:,} new ones are asked for, the "
                f"cache has room for {room:,}; ask for fewer, or give the cache more memory"
            )

    def abandon(self, reason: str) -> Found:
        """End all requests under way with an error, as a step over them has failed; where none was, those that wait."""
        self.flying.clear()
        self.chooser, under_way = None, [*(self.scheduler.running or self.scheduler.waiting)]
        for request in under_way:
            request.flying, request.guesses, request.error = 0, [], reason
        return [(request, "") for request in under_way]

    def cancel(self, request: Request) -> None:
        """End a request before the next step; one that has ended stays as it is."""
        if not request.finished:
            request.row.finish_reason = "cancelled"

    @property
    def busy(self) -> bool:
        """Whether any request is under way or waits."""
        return bool(self.scheduler.running or self.scheduler.waiting or self.flying)

    @torch.inference_mode()
    def step(self) -> Found:
        """One pass, or one that was made before and is read now."""
        started = time.perf_counter()
        if self.flying and (len(self.flying) > self.lag or not self._steady()):
            work, found = Work(), self._landed()
        else:
            work = self._planned()
            parts = [[each] for each in work] if self.deterministic else [work] if work else []
            found = [pair for part in parts for pair in self._pass(part)]
            found += [(each, "") for each in self.scheduler.failed]
        seconds = time.perf_counter() - started
        if self.pace is not None and work:
            self.pace.saw(work, seconds)
        self._count(seconds, work, found)
        return found

    def _planned(self) -> Work:
        if self.flying:
            return self.scheduler.again()
        work = self.scheduler.plan(self._paced())
        return work if self.guesser is None else self.guesser.guess(work, self.store, self.scheduler.budget)

    def _paced(self) -> int | None:
        """Tokens of prompts that the next pass may have beside tokens that are decoded; None for as many as fit."""
        if self.pace is None:
            return None
        decoded = sum(each.unread == 1 for each in self.scheduler.running)
        waiting = len(self.scheduler.running) - decoded + len(self.scheduler.waiting)
        return self.pace.budget(BUDGET, SIZE, waiting / max(decoded, 1))

    def _pass(self, work: Work) -> Found:
        logits_NV, last = self._logits(work)
        for request, count in work:
            if not request.guesses:
                self.store.advance(request, count)
        known = [request for request in last if request.row.max_new_tokens]
        read = [request for request in last if not request.row.max_new_tokens]
        for request in read:
            request.row.finish_reason = "length"
        rows = [at for request in known for at in last[request]]
        for leader in [each for each in known if not each.row.token_ids and not each.flying]:
            for other in self.scheduler.followers(leader):
                if self.store.fork(leader, other):
                    self.scheduler.join(other)
                    known, rows = [*known, other], [*rows, *last[leader]]
        found = [(request, "") for request in read]
        if not known:
            return found
        logits_NV = logits_NV if rows == list(range(len(logits_NV))) else logits_NV[rows]
        self.drawn = self._chooser(known)(logits_NV)
        self.flying.append(Flying(known, Fetched(self.drawn), logits_NV))
        for request in known:
            request.flying += 1
        return found if self._steady() and len(self.flying) <= self.lag else found + self._landed()

    def _logits(self, work: Work) -> tuple[Tensor, dict[Request, range]]:
        """A pass: logits behind tokens, and which of them are behind the last known token of a request that is through,
        and behind each of its guesses."""
        ends = [*itertools.accumulate(count for _, count in work)]
        through = [
            (request, range(end - 1 - len(request.guesses), end))
            for end, (request, count) in zip(ends, work, strict=True)
            if count == request.unread + len(request.guesses)
        ]
        self._choose(work)
        readers = [pair for pair in zip(ends, work, strict=True) if pair[1][0].wants(pair[1][1])]
        if not readers and all(alone(pair, self.store) for pair in work):
            drawn = self.drawn.clamp(min=0) if self.flying and self.drawn is not None else None
            return self.recorded(Single.of(work, self.store, self.device, drawn)), dict(through)
        x_1NE = mixed(self.model, work, self.store)
        for end, (request, count) in readers:
            skipped = max(request.row.asked.read_from - request.computed, 0)
            read = min(len(request.row.prompt) - request.computed, count)
            assert request.reader is not None
            self._choose([(request, 1)])
            request.reader(request.computed + skipped, x_1NE[0, end - count + skipped : end - count + read])
        wanted = [at for _, each in through for at in each]
        self._choose([(request, len(each)) for request, each in through])
        firsts = itertools.accumulate((len(each) for _, each in through), initial=0)
        logits_NV = self.model.logits(x_1NE[:, wanted])[0] if wanted else x_1NE[0, :0]
        places = {request: range(at, at + len(each)) for at, (request, each) in zip(firsts, through, strict=False)}
        return logits_NV, places

    def _choose(self, work: Work) -> None:
        """Let the next rows go through the adapters of these requests, so many for each."""
        if self.model.choice.known:
            names = [request.row.asked.adapter for request, count in work for _ in range(count)]
            self.model.choice.each(names, self.device)

    def _chooser(self, known: list[Request]) -> Chooser:
        """What draws the next tokens of these; the last one where it is for the same."""
        if any(request.guesses for request in known):
            self.chooser = None
            pairs = [(each.row, each.guesses[:n]) for each in known for n in range(len(each.guesses) + 1)]
            return Chooser(self.model, [row for row, _ in pairs], [assumed for _, assumed in pairs])
        if self.chooser is None or self.chooser[0] != known:
            self.chooser = known, Chooser(self.model, [each.row for each in known])
        return self.chooser[1]

    def _steady(self) -> bool:
        """Whether the next pass is known before the tokens of the last: all that is under way is decoded and goes on,
        nothing can join, and there are blocks for all."""
        running = self.scheduler.running
        if not self.lag or self.deterministic or self.store.long or self.guesser is not None:
            return False
        if self.chooser is None or self.chooser[0] != running:
            return False
        joins = self.scheduler.waiting and len(running) < self.scheduler.max_rows
        goes_on = all(
            not each.finished and not each.late and each.row.remaining > each.flying and each.row.asked.late
            for each in running
        )
        return goes_on and not joins and all(each.free >= len(running) for each in self.store.groups.values())

    def _landed(self) -> Found:
        flying = self.flying.popleft()
        tokens, found, at = flying.fetched.read(), Found(), 0
        for request in flying.requests:
            drawn = tokens[at : at + 1 + len(request.guesses)]
            request.flying -= 1
            before = len(request.row.token_ids)
            if not request.finished:
                found += self._taken(request, drawn)
            elif request.error:
                found.append((request, ""))
            taken = request.row.token_ids[before:]
            if request.row.asked.logprobs is not None and taken:
                logits_NV = flying.logits_NV[at : at + len(taken)]
                request.row.scores += scored(logits_NV, taken, request.row.asked.logprobs)
            if request.guesses:
                self._checked(request, drawn, len(taken) - 1)
            at += len(drawn)
        return found

    def _taken(self, request: Request, drawn: Sequence[int]) -> Found:
        """What was drawn, up to the first that is not as guessed."""
        found, row = Found(), request.row
        now = request.times.last = time.monotonic()
        request.times.first = request.times.first or now
        for token, guess in itertools.zip_longest(drawn, request.guesses):
            if token < 0:
                request.error = NOT_FINITE
            found.append((request, "" if request.error else row.push(token)))
            if request.finished or token != guess:
                break
        return found

    def _checked(self, request: Request, drawn: Sequence[int], taken: int) -> None:
        """Compare what was drawn with the guesses, of which so many were taken; the others are taken back, with a state
        all of them."""
        wrong = [guess != token for guess, token in zip(request.guesses, drawn, strict=False)]
        right, count, request.guesses = [*wrong, True].index(True), len(wrong), []
        self.timings.drafted_tokens += count
        self.timings.accepted_tokens += right
        assert self.guesser is not None
        self.guesser.saw(request, count, right)
        if request.saved is not None and taken < count:
            return self.store.restore(request)
        self.store.forget(request)
        self.store.advance(request, request.unread - 1)

    def _count(self, seconds: float, work: Work, found: Found) -> None:
        """A pass over prompts counts for them, with the first token behind each; what is read again for the text."""
        new = [(request, count) for request, count in work if not request.row.token_ids[1:]]
        read = sum(count for request, count in new if request.computed <= len(request.row.prompt))
        total = sum(count for _, count in work)
        share = read / total if total else 0.0
        self.timings.prompt_seconds += share * seconds
        self.timings.prompt_tokens += read
        self.timings.decode_seconds += (1 - share) * seconds
        later = sum(len(request.row.token_ids) > 1 for request, _ in found)
        self.timings.decode_tokens += later
        self.timings.decode_steps += later > 0
