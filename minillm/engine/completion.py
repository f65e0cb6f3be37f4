"""One prompt and what comes of it, token by token: where it ends, and the text that is sure enough to be given away."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from minillm.engine.sampling import Sampling
from minillm.text.tokenizer import TextStream, Tokenizer, held_back, stop_position


@dataclass
class Completion:
    """One prompt and what has come of it so far."""

    prompt: list[int]
    sampling: Sampling
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    stops: Sequence[str] = ()
    tokenizer: Tokenizer | None = None  # without one there are ids only
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        seed = self.sampling.seed
        self.seed = secrets.randbits(63) if seed is None else seed  # one that nobody knows
        self._stream = TextStream(self.tokenizer) if self.tokenizer else None
        self._pending = ""  # text that may be the beginning of a stop string

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
        if self._stream is None:
            return ""
        self._pending += self._stream.push(token) if token not in self.stop_ids else ""
        return self.flush() if self.finish_reason else self._release(held_back(self._pending, self.stops))

    def flush(self) -> str:
        """The text still held back, when nothing more will come."""
        if self._stream is None:
            return ""
        self._pending += self._stream.finish()
        return self._release(0)

    def _release(self, keep: int) -> str:
        at = stop_position(self._pending, self.stops)
        if at is not None:
            self.finish_reason = "stop"
            piece, self._pending = self._pending[:at], ""
        else:
            cut = len(self._pending) - keep
            piece, self._pending = self._pending[:cut], self._pending[cut:]
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
