"""A vocabulary of words without a file, and completions that are given their ids."""

from __future__ import annotations

from typing import Any

from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling


class Words:
    """A vocabulary of words, of which those in angle brackets are special tokens."""

    def __init__(self, words: list[str]):
        self.words = words

    def decode(self, ids: Any, skip_special: bool = True) -> str:
        return "".join(self.words[i] for i in ids if not (skip_special and self.words[i].startswith("<")))


def completed(words: Words, ids: list[int], prompt: list[int], **options: Any) -> tuple[Completion, list[str]]:
    """A completion that has been given ids until it stopped, and the pieces that it gave."""
    row = Completion(prompt, Sampling(), len(ids), tokenizer=words, **options)  # type: ignore[arg-type]
    pieces = []
    for i in ids:
        pieces.append(row.push(i))
        if row.finish_reason:
            break
    return row, pieces
