"""From the engine's rows to what APIs send: events while an answer is written, and the answer as a whole.

A `Job` is one request under way, with a `Choice` for each answer that it wants. `Job.events` gives what is new, choice
by choice; whoever reads slowly gets more at a time. Closing a job ends what is not done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from minillm.engine.asked import GRAMMAR_FAILED, Score
from minillm.engine.batching.threaded import Ticket
from minillm.engine.completion import Completion
from minillm.serve.answers.guarding import Guarded
from minillm.serve.answers.reader import Piece, Reader
from minillm.serve.asked import Asked
from minillm.serve.errors import Refusal
from minillm.serve.keys import Lease
from minillm.serve.models import Served
from minillm.serve.patience import Patience

NO_MARKS: Mapping[str, int] = {}


@dataclass(frozen=True)
class Event:
    """What is new in a choice: pieces of its answer, tokens with their scores where they were asked for, and at its end
    why it ended: stop, length or tool_calls."""

    choice: int
    pieces: list[Piece]
    tokens: list[int]
    scores: list[Score]
    finish: str | None = None


class Choice:
    """One answer, as far as it has come."""

    def __init__(
        self,
        index: int,
        ticket: Ticket,
        reader: Reader,
        scored: bool,
        most: int = 0,
        marks: Mapping[str, int] = NO_MARKS,
    ):
        self.most = most  # tokens asked for, which may be more than there was room for
        self.guarded = Guarded(marks)
        self.index, self.ticket, self.row, self.reader, self.scored = index, ticket, ticket.row, reader, scored
        self.finish: str | None = None
        self.called = False
        self.gaps: list[float] = []  # seconds a token, as they came
        self._text = self._tokens = 0  # what of it was given out
        self._seen: float | None = None

    @property
    def times(self) -> tuple[float | None, ...]:
        """When it arrived, was begun, had its first token and its last: time.monotonic()."""
        times = self.ticket.request.times
        return times.arrived, times.started, times.first, times.last

    @property
    def error(self) -> str | None:
        """Why it could not go on."""
        return self.ticket.request.error

    @property
    def shown(self) -> int:
        """How many tokens are part of the answer: a token that only ends it is not."""
        return len(self.row.token_ids) - isinstance(self.row.stopped_by, int)

    def event(self, named: bool) -> Event | None:
        """What has come since the last one. Raises Refusal where the request could not go on."""
        ended = self.ticket.ended  # before the row is looked at, all of which is there then
        row, shown = self.row, self.shown if ended else len(self.row.token_ids)
        count = min(shown, len(row.scores)) if self.scored else shown
        if not ended and count and row.token_ids[count - 1] in row.stop_ids:
            count -= 1  # whether it is shown is known at the end
        tokens = row.token_ids[self._tokens : count]
        scores = list(row.scores[self._tokens : count]) if self.scored else []
        self._clock(len(tokens))
        self._tokens = max(self._tokens, count)
        text = row.raw
        new, self._text = text[self._text :], len(text)
        pieces = self.reader.push(self.guarded.push(new, row.token_ids, row.ends))
        if ended:
            pieces = self._end(pieces, named)
        if not (pieces or tokens or ended):
            return None
        return Event(self.index, pieces, tokens, scores, self.finish)

    def _end(self, pieces: list[Piece], named: bool) -> list[Piece]:
        if self.error is not None or self.row.finish_reason in ("cancelled", "deadline"):
            raise failed(self.row, self.error)
        reason = str(self.row.finish_reason)
        pieces = pieces + self.reader.push(self.guarded.finish(self.row.token_ids, self.row.ends))
        pieces += self.reader.finish(reason)
        self.called = self.called or any(piece.kind == "call" for piece in pieces)
        self.finish = "tool_calls" if self.called and reason == "stop" and not named else reason
        return pieces

    def _clock(self, count: int) -> None:
        now = time.monotonic()
        if count and self._seen is not None:
            self.gaps.append((now - self._seen) / count)
        self._seen = now if count else self._seen


def failed(row: Completion, error: str | None) -> Refusal:
    """Why an answer has no end. What a step raised is for the log only."""
    if error is not None and error.startswith(GRAMMAR_FAILED):  # some limits are met only while it is written
        said = "the grammar of this request was too much to follow; ask for a smaller schema or fewer tools"
        return Refusal(400, said, "grammar_failed")
    if error is not None:
        return Refusal(500, "the engine could not go on with this request; the server's log says why", "engine_error")
    if row.finish_reason == "deadline":
        return Refusal(504, "the request took longer than this server allows", "timeout")
    return Refusal(503, "the server ended this request, as it is shutting down", "shutting_down")


@dataclass
class Answer:
    """A choice as a whole. Calls are (id, name, arguments as JSON text)."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    finish: str = ""

    def add(self, event: Event) -> None:
        for piece in event.pieces:
            if piece.kind == "content":
                self.content += piece.text
            elif piece.kind == "reasoning":
                self.reasoning += piece.text
            elif piece.kind == "call":
                self.calls.append([piece.id, piece.text, ""])
            else:
                self.calls[piece.index][2] += piece.text
        self.tokens += event.tokens
        self.scores += event.scores
        self.finish = event.finish or self.finish


class Job:
    """A request under way. `lease` is its place among those of its key; `on_end` is called once, with the job."""

    def __init__(
        self,
        served: Served,
        asked: Asked,
        choices: list[Choice],
        lease: Lease,
        keep_alive: float,
        on_end: Callable[[Job], Any],
    ):
        self.served, self.asked, self.choices, self.lease = served, asked, choices, lease
        self.keep_alive, self.on_end = keep_alive, on_end
        self.began, self.made = time.monotonic(), int(time.time())
        self._reasoning, self._thought = [""] * len(choices), 0  # text whose tokens are not counted yet, and the others
        self.closed = False
        self._changed: set[int] = set()
        self._there = asyncio.Event()

    async def events(self) -> AsyncIterator[Event | None]:
        """What is new, to the end of all choices; None where nothing has come for a while. Raises Refusal."""
        for choice in self.choices:
            choice.ticket.listen(partial(self._mark, choice.index))
        silence = Patience(self.keep_alive, self._there.set)
        try:
            while any(choice.finish is None for choice in self.choices):
                silence.start()
                await self._there.wait()
                silence.stop()
                self._there.clear()
                if silence.over:
                    yield None
                changed, self._changed = sorted(self._changed), set()
                for index in changed:
                    if self.choices[index].finish is None and (event := self._event(index)):
                        yield event
        finally:
            silence.close()
            self.close()

    async def whole(self) -> list[Answer]:
        """The answers, once all are there. Raises Refusal."""
        answers = [Answer() for _ in self.choices]
        async for event in self.events():
            if event is not None:
                answers[event.choice].add(event)
        return answers

    def close(self) -> None:
        """End what is not done. Doing it twice does nothing."""
        if self.closed:
            return
        self.closed = True
        for choice in self.choices:
            if choice.finish is None:
                self.served.engine.cancel(choice.ticket)
        self.lease.end(sum(prompt for prompt, _ in self.prompts()) + self.written)
        self.on_end(self)

    def stop(self) -> None:
        """End what is not done, from elsewhere: whoever reads the events is told."""
        for choice in self.choices:
            self.served.engine.cancel(choice.ticket)

    @property
    def written(self) -> int:
        return sum(len(choice.row.token_ids) for choice in self.choices)

    def prompts(self) -> list[tuple[int, int]]:
        """Of each prompt, which the choices of one prompt share: its tokens, and how many of them were in the cache."""
        first = self.choices[:: self.asked.n]
        return [(len(each.row.prompt), each.ticket.request.cached) for each in first]

    def usage(self) -> dict[str, int]:
        """Tokens: of prompts and of answers, and of these the cached and what was reasoning."""
        prompts, tokenizer = self.prompts(), self.served.llm.tokenizer
        new, self._reasoning = self._reasoning, [""] * len(self.choices)
        self._thought += sum(len(tokenizer.encode(text, special=False)) for text in new if text and tokenizer)
        return {
            "prompt": sum(count for count, _ in prompts),
            "cached": sum(cached for _, cached in prompts),
            "completion": self.written,
            "reasoning": min(self._thought, self.written),
        }

    def _event(self, index: int) -> Event | None:
        event = self.choices[index].event(self.asked.tool_choice == "named")
        for piece in event.pieces if event else ():
            self.choices[index].called |= piece.kind == "call"
            self._reasoning[index] += piece.text if piece.kind == "reasoning" else ""
        return event

    def _mark(self, index: int) -> None:
        self._changed.add(index)
        self._there.set()
