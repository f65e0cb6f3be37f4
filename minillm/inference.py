"""Prefill and decode as two plain functions over a preallocated cache, and the loop that joins them.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minillm.cache import Cache
from minillm.model import Decoder
from minillm.sampling import History, Sampling, as_tensors, penalise
from minillm.tokenizer import TextStream, Tokenizer, held_back, stop_position

# Long prompts go through in pieces, so that masks and activations stay bounded.
PREFILL_CHUNK = 2048


def prefill(model: Decoder, prompts: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """Fill an empty cache with prompts, aligned at their end by the cache's padding; returns the logits `[B, V]` that
    follow each."""
    width = max(map(len, prompts))
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    tokens_BT = torch.tensor(rows, device=cache.device)
    cache.prompt_length = width
    for chunk in tokens_BT.split(PREFILL_CHUNK, dim=1):
        logits_B1V = model(chunk, cache, last_only=True)
    return logits_B1V[:, -1]


def decode(model: Decoder, tokens: Sequence[int], cache: Cache) -> Tensor:
    """One token per row -> the logits `[B, V]` that follow."""
    return model(torch.tensor(tokens, device=cache.device)[:, None], cache)[:, -1]


def advance(model: Decoder, sequences: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """The logits `[B, V]` that follow sequences of which the cache lacks the last token. Where that token changes how
    all before it must be rotated, the sequences are read anew."""
    if model.outgrown(cache):
        cache.length = 0
        return prefill(model, sequences, cache)
    return decode(model, [sequence[-1] for sequence in sequences], cache)


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
        self._stream = TextStream(self.tokenizer) if self.tokenizer else None
        self._pending = ""  # text that may be the beginning of a stop string

    def push(self, token: int) -> str:
        """Take the next token; returns the text that it adds for good."""
        self.token_ids.append(token)
        if token in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_new_tokens:
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
    """Seconds and counts of one run; the first new token of each row belongs to the prompt, which it follows from."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_steps: int = 0
    decode_seconds: float = 0.0


@torch.inference_mode()
def generate(model: Decoder, rows: Sequence[Completion], timings: Timings) -> Iterator[tuple[int, str]]:
    """Run completions as one batch until each has finished; yields (row, new text) as it comes.

    A row that has finished goes on through the model unseen until the last one has; rows do not influence each other.
    """
    prompts = [row.prompt for row in rows]
    width = max(map(len, prompts))
    weight = model.embedding.weight
    cache = Cache(
        model.spec,
        batch=len(rows),
        capacity=width + max(row.max_new_tokens for row in rows),
        dtype=model.dtype,
        device=weight.device,
        padding=[width - len(prompt) for prompt in prompts],
    )
    next_tokens = Chooser(model, rows)

    started = time.perf_counter()
    sequences = [list(prompt) for prompt in prompts]
    tokens = next_tokens(prefill(model, sequences, cache))
    timings.prompt_tokens = sum(map(len, prompts))
    timings.prompt_seconds = time.perf_counter() - started
    while True:
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if not row.finish_reason and (piece := row.push(token)):
                yield index, piece
        active = sum(row.finish_reason is None for row in rows)
        if not active:
            return
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.append(token)
        started = time.perf_counter()
        tokens = next_tokens(advance(model, sequences, cache))
        timings.decode_seconds += time.perf_counter() - started
        timings.decode_tokens += active
        timings.decode_steps += 1


class Chooser:
    """The next token of each row, step after step, by its own settings, history and seed; 0 where it is finished."""

    def __init__(self, model: Decoder, rows: Sequence[Completion]):
        self.rows, self.sample, device = rows, model.ops.sample, model.embedding.weight.device
        wanted = [row.sampling for row in rows]
        seeds = [secrets.randbits(63) if each.seed is None else each.seed for each in wanted]  # one that nobody knows
        self.settings = (*as_tensors(wanted, device), torch.tensor(seeds, device=device))
        self.drawn = torch.zeros(len(rows), dtype=torch.int64, device=device)
        vocabulary = model.spec.vocab_size
        self.histories = [History(vocabulary, row.prompt, device) if row.sampling.penalised else None for row in rows]

    def __call__(self, logits_BV: Tensor) -> list[int]:
        """Raises ValueError where the logits of a row that goes on are not numbers to choose by."""
        kind = logits_BV.dtype
        if any(self.histories):
            logits_BV = torch.stack([
                penalise(logits_V, row.sampling, history) if history else logits_V.float()
                for row, logits_V, history in zip(self.rows, logits_BV, self.histories, strict=True)
            ])  # fmt: skip
        tokens = self.sample(logits_BV, *self.settings, self.drawn).tolist()
        self.drawn.add_(1)
        tokens = [0 if row.finish_reason else token for token, row in zip(tokens, self.rows, strict=True)]
        if min(tokens) < 0:
            raise ValueError(
                f"the model's logits are not finite ({kind}): its values overflow or its weights are damaged; "
                "try dtype float32"
            )
        for token, history in zip(tokens, self.histories, strict=True):
            if history:
                history.push(token)
        return tokens
