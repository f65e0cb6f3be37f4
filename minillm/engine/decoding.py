"""Which loop runs a list of completions, by what was asked for: a batch, or guesses that are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from minillm.engine import speculative
from minillm.engine.batching import engine
from minillm.engine.completion import Completion, Timings
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
    length of n-grams looked for in the text so far, guesses `draft_tokens` tokens (default 4) for each pass of the
    model; rows then run one after the other. Raises ValueError for what cannot be.
    """
    numbers = {"max_batch": max_batch, "draft_tokens": draft_tokens, "prompt_lookup": prompt_lookup}
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise ValueError(f"{name} is {value!r}, it must be a whole number of at least 1")
    if draft is None and prompt_lookup is None:
        if draft_tokens is not None:
            raise ValueError("draft_tokens says how many tokens are guessed at a time; give draft or prompt_lookup too")
        return engine.generate(llm.model, rows, timings, max_batch or engine.MAX_ROWS, deterministic)
    if draft is not None and prompt_lookup is not None:
        raise ValueError("draft and prompt_lookup both guess tokens; give one of them")
    if max_batch is not None:
        raise ValueError("with draft or prompt_lookup rows run one after the other; leave max_batch out")
    proposer = _drafts(llm, draft, timings) if draft is not None else _lookups(int(prompt_lookup or 0))
    count = draft_tokens or speculative.DRAFT_TOKENS
    return speculative.generate(llm.model, rows, timings, proposer, count, deterministic)


def _lookups(longest: int) -> Callable[[Completion], speculative.Proposer]:
    return lambda row: speculative.PromptLookup(longest)


def _drafts(llm: Loaded, draft: Loaded, timings: Timings) -> Callable[[Completion], speculative.Proposer]:
    """Drafts for the rows. Raises ValueError where an id means one token here and another there; a vocabulary that is
    padded to another size will do, as its last ids never come."""
    sizes, (one, other) = [each.model.spec.vocab_size for each in (llm, draft)], (llm.tokenizer, draft.tokenizer)
    if one is None or other is None:
        if sizes[0] != sizes[1]:
            raise ValueError(f"the draft's vocabulary has {sizes[1]} tokens and the model's {sizes[0]}; take another")
        return lambda row: speculative.Draft(draft.model, llm.model, row, timings)
    for token in range(min(sizes)):
        here, there = one.decode([token], skip_special=False), other.decode([token], skip_special=False)
        if here != there:
            raise ValueError(
                f"token {token} is {here!r} in {llm.folder} and {there!r} in {draft.folder}; "
                "take a draft with the model's vocabulary"
            )
    return lambda row: speculative.Draft(draft.model, llm.model, row, timings)
