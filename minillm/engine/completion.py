"""One prompt and what comes of it, token by token: where it ends, and the text that is sure enough to be given away."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from minillm.engine.sampling import Sampling
from minillm.text.answer import Answer, Chunk
from minillm.text.tokenizer import Tokenizer, held_back, stop_position


@dataclass
class Completion:
    """One prompt and what has come of it so far. `text` is the answer, without special tokens and without what the
    model marked as `reasoning`; stop strings are looked for in all that it writes, special tokens included."""

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

    def __post_init__(self) -> None:
        seed = self.sampling.seed
        self.seed = secrets.randbits(63) if seed is None else seed  # one that nobody knows
        self._answer = Answer(self.tokenizer, self.prompt, raw=bool(self.stops)) if self.tokenizer else None
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
            self.finish_reason = "stop"
        elif self.remaining <= 0:
            self.finish_reason = "length"
        if self._answer is None:
            return ""
        if token not in self.stop_ids:
            self._pending += self._answer.push(token)
        return self.flush() if self.finish_reason else self._release(final=False)

    def flush(self) -> str:
        """The text still held back, when nothing more will come."""
        if self._answer is None:
            return ""
        self._pending += self._answer.finish()
        return self._release(final=True)

    def _release(self, final: bool) -> str:
        raw = "".join(chunk.raw for chunk in self._pending)
        at = stop_position(raw, self.stops)
        if at is not None:
            self.finish_reason = "stop"
        end = at if at is not None else len(raw) - (0 if final else held_back(raw, self.stops))
        given: list[Chunk] = []
        while self._pending and len(self._pending[0].raw) <= end:
            end -= len(self._pending[0].raw)
            given.append(self._pending.pop(0))
        if self._pending and end:
            first, self._pending[0] = self._pending[0].split(end)
            given.append(first)
        if at is not None:
            self._pending = []
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
