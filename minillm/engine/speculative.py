"""Speculative decoding: tokens are guessed cheaply, and one pass of the model over all guesses says how many of them it
would have written itself (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318).

A pass over a few tokens reads the weights once, as a pass over one does, and so costs little more. Its logits are those
behind each guess, as long as the guesses before it are right: the model draws from them in order, keeps what agrees
with the guesses, and its first draw that does not is the next token all the same. What the cache holds of the wrong
guesses is taken back.

The papers accept a guess x of the draft's distribution q with probability min(1, p(x) / q(x)) and else draw from what p
has over q. Here every draw is a function of seed, position and token (`draw.sample`): the draft draws with the very
numbers that the model will draw with, so both choose alike where their distributions are alike (Daliri et al.,
arXiv:2408.07978), and a guess is right if it is what the model draws. So the text is not only distributed as without
guesses but the same, whatever the settings; what it costs is a few accepted guesses in a hundred.

Guesses come from a smaller model with the same vocabulary, or from the text itself: what followed the last time that
these few tokens stood there (prompt lookup, Saxena, 2023).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.engine.choosing import foresee
from minillm.engine.completion import Completion, Timings
from minillm.engine.inference import decode_singly, prefill
from minillm.model.cache import Cache, ahead
from minillm.model.decoder import Decoder

DRAFT_TOKENS = 4


class Proposer(Protocol):
    """What guesses at most `count` tokens to come, having seen all that the row has so far."""

    def propose(self, row: Completion, count: int) -> list[int]: ...


@torch.inference_mode()
def generate(
    model: Decoder,
    rows: Sequence[Completion],
    timings: Timings,
    proposer: Callable[[Completion], Proposer],
    count: int = DRAFT_TOKENS,
    deterministic: bool = False,
) -> Iterator[tuple[int, str]]:
    """As `batch.generate`, one row after the other, with `count` guesses to a pass by what `proposer` makes for each.

    With `deterministic` the guesses are checked in the shapes of single steps, and logits are bit for bit those of
    decoding without; else near ties may fall the other way, as products of several rows round differently.
    """
    for index, row in enumerate(rows):
        pieces = _complete(model, row, timings, proposer(row), count, deterministic)
        yield from ((index, piece) for piece in pieces if piece)


def _complete(
    model: Decoder, row: Completion, timings: Timings, proposer: Proposer, count: int, deterministic: bool
) -> Iterator[str]:
    started = time.perf_counter()
    cache = _cache(model, len(row.prompt), row.max_new_tokens)
    (token,) = foresee(model, row, prefill(model, [row.prompt], cache), [])
    timings.prompt_tokens += len(row.prompt)
    timings.prompt_seconds += time.perf_counter() - started
    yield row.push(token)
    while row.finish_reason is None:
        started = time.perf_counter()
        guesses, logits_TV = _guessed(model, row, proposer, cache, count, deterministic)
        drawn = foresee(model, row, logits_TV, guesses)
        wrong = [guess != token for guess, token in zip(guesses, drawn, strict=False)]
        accepted = [*wrong, True].index(True)
        cache.rewind(cache.length - len(guesses) + accepted)
        timings.decode_seconds += time.perf_counter() - started
        timings.decode_steps += 1
        timings.drafted_tokens += len(guesses)
        timings.accepted_tokens += accepted
        for token in drawn[: accepted + 1]:
            if row.finish_reason is None:
                timings.decode_tokens += 1
                yield row.push(token)


def _guessed(
    model: Decoder, row: Completion, proposer: Proposer, cache: Cache, count: int, deterministic: bool
) -> tuple[list[int], Tensor]:
    """Guesses, and the logits `[T, V]` behind the row's last token and behind each of them."""
    cache.reserve(min(count + 1, row.remaining))
    if model.outgrown(cache):
        cache.length = 0
        return [], prefill(model, [row.sequence], cache)
    most = min(count, row.remaining - 1, cache.undoable - 1, model.alike(cache) - 1)
    guesses = proposer.propose(row, most) if most > 0 else []
    tokens = torch.tensor([row.token_ids[-1], *guesses], device=cache.device)
    cache.mark(len(tokens))
    if deterministic:
        return guesses, decode_singly(model, tokens, [cache] * len(tokens))
    return guesses, model(tokens[None], cache)[0]


def _cache(model: Decoder, length: int, remaining: int) -> Cache:
    return Cache(model.spec, 1, length + ahead(length, remaining), model.dtype, model.embedding.weight.device)


class Draft:
    """Guesses by a model with the vocabulary of `target`, drawn as the row itself is."""

    def __init__(self, model: Decoder, target: Decoder, row: Completion, timings: Timings):
        self.model, self.target, self.timings = model, target, timings
        self.context = min(model.spec.context, len(row.prompt) + row.max_new_tokens)
        self.cache = _cache(model, length := min(len(row.prompt), self.context), self.context - length)

    def propose(self, row: Completion, count: int) -> list[int]:
        sequence, cache = row.sequence, self.cache
        count = min(count, cache.undoable, self.context - len(sequence))
        if count < 1 or max(sequence) >= self.model.spec.vocab_size:
            return []
        cache.rewind(min(cache.length, len(sequence) - 1))  # the last guesses but the right ones
        cache.reserve(len(sequence) + count - cache.length)
        guesses: list[int] = []
        logits_1V = self._read(sequence)
        cache.mark(count)
        while True:
            guesses += foresee(self.target, row, logits_1V, guesses)
            if len(guesses) == count:
                return guesses
            logits_1V = self._read(sequence + guesses)

    def _read(self, sequence: list[int]) -> Tensor:
        """The logits `[1, V]` behind a sequence, with the target's V: a vocabulary may be padded to another size."""
        cache = self.cache
        while cache.length < len(sequence):
            self.timings.draft_steps += 1
            if not cache.length or self.model.outgrown(cache):
                cache.length = 0
                logits_1V = prefill(self.model, [sequence], cache)
            else:
                unread = sequence[cache.length :][: self.model.alike(cache)]
                logits_1V = self.model(torch.tensor([unread], device=cache.device), cache, last_only=True)[:, -1]
        missing = self.target.spec.vocab_size - self.model.spec.vocab_size
        return F.pad(logits_1V, (0, missing), value=float("-inf"))


class PromptLookup:
    """Guesses by what followed when the last `longest` tokens, or as many as are found, stood in the text before."""

    def __init__(self, longest: int):
        self.longest = longest
        self.indexed = 0
        self.behind: dict[tuple[int, ...], int] = {}  # where the last of each n-gram ended

    def propose(self, row: Completion, count: int) -> list[int]:
        text = row.sequence
        for end in range(self.indexed + 1, len(text)):  # what ends the text has nothing behind it yet
            for n in range(1, min(self.longest, end) + 1):
                self.behind[tuple(text[end - n : end])] = end
        self.indexed = len(text) - 1
        sizes = range(min(self.longest, len(text)), 0, -1)
        at = next((self.behind[key] for n in sizes if (key := tuple(text[-n:])) in self.behind), None)
        if at is None:
            return []
        for each in range(at, at + count):  # beyond the end of the text the guesses themselves go on
            text.append(text[each])
        return text[len(text) - count :]
