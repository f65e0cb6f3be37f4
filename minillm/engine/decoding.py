"""A list of completions in an engine, with what guesses tokens for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from minillm.engine.batching import running
from minillm.engine.batching.guessing import COUNT, Guesser
from minillm.engine.batching.proposers import Draft, Lookup
from minillm.engine.batching.room import BUDGET, MAX_ROWS
from minillm.engine.completion import Completion, Timings
from minillm.guard.screen import note
from minillm.model.decoder import Decoder
from minillm.text.tokenizer import Tokenizer

OPTIONS = ("max_batch", "deterministic", "draft", "draft_tokens", "prompt_lookup")


class Loaded(Protocol):
    """What is needed of a loaded checkpoint."""

    folder: Path
    model: Decoder
    tokenizer: Tokenizer | None


def split(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the options of `run` out of all that were given."""
    return {name: options.pop(name) for name in OPTIONS if name in options}


def run(
    llm: Loaded,
    rows: Sequence[Completion],
    timings: Timings,
    *,
    max_batch: int | None = None,
    deterministic: bool = False,
    draft: Loaded | None = None,
    draft_tokens: int | None = None,
    prompt_lookup: int | None = None,
) -> Iterator[tuple[int, str]]:
    """Run completions until each has finished; yields (row, new text) as it comes. No option changes what is written,
    but for near ties.

    At most `max_batch` rows (default 32) go through the model together; the others wait. With `deterministic` each has
    the logits that it has alone, bit for bit. A `draft`, a checkpoint with the same vocabulary, or `prompt_lookup`, the
    length of n-grams looked for in the text so far, guesses `draft_tokens` tokens (default 4) of each row for each pass
    of the model. Raises ValueError for what cannot be.
    """
    numbers = {"max_batch": max_batch, "draft_tokens": draft_tokens, "prompt_lookup": prompt_lookup}
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise ValueError(f"{name} is {value!r}, it must be a whole number of at least 1")
    if draft is not None and any(row.inserted for row in rows):
        raise ValueError("a draft sees no pictures and hears no sounds; leave --draft (draft) out")
    guesser = guessing(llm, draft, draft_tokens, prompt_lookup, timings)
    if guesser is not None and deterministic:
        raise ValueError("deterministic takes each token by itself, so guesses save nothing; leave out one of them")
    return running.generate(llm.model, rows, timings, max_batch or MAX_ROWS, deterministic, guesser=guesser)


def guessing(
    llm: Loaded, draft: Loaded | None, draft_tokens: int | None, prompt_lookup: int | None, timings: Timings
) -> Callable[[int, int], Guesser] | None:
    """What makes guesses for so many positions and rows, where they are asked for."""
    if draft is None and prompt_lookup is None:
        if draft_tokens is not None:
            raise ValueError("draft_tokens says how many tokens are guessed at a time; give draft or prompt_lookup too")
        return None
    count = draft_tokens or COUNT
    if draft is None:
        return lambda positions, rows: Guesser(Lookup(int(prompt_lookup or 0)), count)
    if prompt_lookup is not None:
        raise ValueError("draft and prompt_lookup both guess tokens; give one of them")
    refuse_other_words(llm, draft)
    model = draft.model
    return lambda positions, rows: Guesser(Draft(model, llm.model, positions, rows, BUDGET, timings), count)


def refuse_other_words(llm: Loaded, draft: Loaded) -> None:
    """Raises ValueError where an id means one token here and another in the draft; a vocabulary that is padded to
    another size will do, as its last ids never come."""
    sizes, (one, other) = [each.model.spec.vocab_size for each in (llm, draft)], (llm.tokenizer, draft.tokenizer)
    if one is None or other is None:
        if sizes[0] != sizes[1]:
            raise ValueError(f"the draft's vocabulary has {sizes[1]} tokens and the model's {sizes[0]}; take another")
        return
    for token in range(min(sizes)):
        here, there = one.decode([token], skip_special=False), other.decode([token], skip_special=False)
        if here != there:
            raise ValueError(
                f"token {token} is {here!r} in {llm.folder} and {there!r} in {draft.folder}; "
                "take a draft with the model's vocabulary"
            )


def with_a_word_about_reasoning(
    rows: Sequence[Completion], pieces: Iterator[tuple[int, str]]
) -> Iterator[tuple[int, str]]:
    """The pieces as they come, and a note behind them where answers have nothing but reasoning."""
    yield from pieces
    if silent := sum(bool(row.reasoning and not row.text) for row in rows):
        one = "the answer has" if len(rows) == 1 else f"{silent} of {len(rows)} answers have"
        note(f"{one} reasoning and no text: it ended before the model was done with thinking; allow more new tokens")
