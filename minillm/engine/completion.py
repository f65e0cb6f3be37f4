"""One prompt and what comes of it, token by token: where it ends, and the text that is sure enough to be given away."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from minillm.engine.asked import GRAMMAR_FAILED, NOTHING, Asked, Guide, Score
from minillm.engine.inserted import Inserted
from minillm.engine.sampling import History, Sampling
from minillm.text.answer import Answer, Chunk
from minillm.text.tokenizer import Tokenizer, held_back, stop_position


class Prompt(NamedTuple):
    """Token ids, and what of them stands for pictures or sounds."""

    ids: list[int]
    inserted: Inserted | None = None


@dataclass
class Completion:
    """One prompt and what has come of it so far. `text` is the answer, without special tokens and without what the
    model marked as `reasoning`; stop strings are looked for in all that it writes, special tokens included. Where it is
    asked for, `raw` is all that was given away, special tokens included, `ends` says where in it each token ends, and
    `scores` are of `token_ids`."""

    prompt: list[int]
    sampling: Sampling
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    stops: Sequence[str] = ()
    tokenizer: Tokenizer | None = None  # without one there are ids only
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    asked: Asked = NOTHING
    raw: str = ""
    ends: list[int] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    prompt_scores: list[Score | None] = field(default_factory=list)
    stopped_by: str | int | None = None  # the stop string, or the stop id
    error: str | None = None  # why it cannot go on
    history: History | None = None  # kept for the penalties, from step to step
    inserted: Inserted | None = None  # what of the prompt is no text

    def __post_init__(self) -> None:
        seed = self.sampling.seed
        self.seed = secrets.randbits(63) if seed is None else seed  # one that nobody knows
        raw = bool(self.stops) or self.asked.raw
        self._answer = Answer(self.tokenizer, self.prompt, raw) if self.tokenizer else None
        self._pending: list[Chunk] = []  # text that may be the beginning of a stop string

    @property
    def sequence(self) -> list[int]:
        return self.prompt + self.token_ids

    @property
    def remaining(self) -> int:
        """How many more tokens may come."""
        return self.max_new_tokens - len(self.token_ids)

    def push(self, token: int) -> str:
        """Take the next token; returns the text that it adds for good."""
        self.token_ids.append(token)
        if token in self.stop_ids:
            self.finish_reason, self.stopped_by = "stop", token
        elif self.remaining <= 0:
            self.finish_reason = "length"
        if self.asked.guide is not None and token not in self.stop_ids:
            self._keep_to(self.asked.guide, token)
        if self._answer is None:
            return ""
        if token not in self.stop_ids:
            new = self._answer.push(token)
            self._pending += new
            if self.asked.raw:
                self.ends.append((self.ends[-1] if self.ends else 0) + sum(len(chunk.raw) for chunk in new))
        return self.flush() if self.finish_reason else self._release(final=False)

    def _keep_to(self, guide: Guide, token: int) -> None:
        try:
            guide.advance(token)
        except Exception as error:  # of somebody else's code: it ends this completion and no other
            self.error = f"{GRAMMAR_FAILED}: {error}"

    def flush(self) -> str:
        """The text still held back, when nothing more will come."""
        if self._answer is None:
            return ""
        self._pending += self._answer.finish()
        return self._release(final=True)

    def _release(self, final: bool) -> str:
        raw = "".join(chunk.raw for chunk in self._pending)
        stops = self.stops if len(self.token_ids) >= self.asked.min_new_tokens else ()
        at = stop_position(raw, stops)
        if at is not None:
            self.finish_reason = "stop"
            self.stopped_by = next(stop for stop in self.stops if raw.startswith(stop, at))
        end = at if at is not None else len(raw) - (0 if final else held_back(raw, stops))
        given: list[Chunk] = []
        while self._pending and len(self._pending[0].raw) <= end:
            end -= len(self._pending[0].raw)
            given.append(self._pending.pop(0))
        if self._pending and end:
            first, self._pending[0] = self._pending[0].split(end)
            given.append(first)
        if at is not None:
            self._pending = []
        if self.asked.raw:
            self.raw += "".join(chunk.raw for chunk in given)
        piece = "".join(chunk.shown for chunk in given if chunk.part == "text")
        self.reasoning += "".join(chunk.shown for chunk in given if chunk.part == "reasoning")
        self.text += piece
        return piece


@dataclass
class Timings:
    """Seconds and counts of one run; the first new token of each row belongs to the prompt, which it follows from.

    A decode step is one forward pass of the model, whatever number of rows or of drafted tokens goes through it.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    draft_steps: int = 0  # forward passes of the draft model
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # those of the drafted that the model would have written itself


@dataclass(frozen=True)
class Result:
    """One completion. `token_ids` are the new ids, the stop token included; `text` is what the tokenizer makes of them
    alone, without the stop token (SentencePiece vocabularies drop the space before a first word).

    `reasoning` is what the model marked as such by special tokens (`text/answer.py`); it is no part of `text`.
    `finish_reason` is "stop" (a stop token or stop string came) or "length". `timings` are those of the whole batch.
    `scores` and `prompt_scores` are there where logprobs and prompt_logprobs were asked for (`engine/asked.py`).
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str
    timings: Timings
    reasoning: str = ""
    scores: Sequence[Score] = ()
    prompt_scores: Sequence[Score | None] = ()

    @classmethod
    def of(cls, row: Completion, timings: Timings) -> Result:
        """What has come of a row."""
        made = row.text, row.token_ids, row.prompt, str(row.finish_reason), timings, row.reasoning
        return cls(*made, row.scores, row.prompt_scores)
