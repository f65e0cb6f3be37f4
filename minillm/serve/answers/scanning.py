"""Marks in a text that comes in pieces, and where a body ends: the bracket that closes its first, or a mark, neither
of them inside a string. Linear in the text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

MAX_DEPTH = 200  # of brackets; Python's own JSON reader gives up at about 1000


class Marks:
    """Texts to look for in one that comes in pieces: there may be hundreds, and this is done for each token."""

    def __init__(self, marks: Iterable[str]):
        ordered = sorted(marks, key=len, reverse=True)
        self.search = re.compile("|".join(map(re.escape, ordered)) or r"(?!)").search
        self.begun = {mark[:size] for mark in ordered for size in range(1, len(mark))}
        self.longest = max(map(len, self.begun), default=0)

    def held(self, text: str) -> str:
        """The longest end of a text that a mark begins with, but is not all of."""
        ends = (text[-size:] for size in range(min(len(text), self.longest), 0, -1))
        return next((end for end in ends if end in self.begun), "")


@functools.lru_cache(maxsize=256)
def marks_of(*marks: str) -> Marks:
    """`Marks`, made once: those of a model are the same for all its answers."""
    return Marks(marks)


class Scanner:
    """Takes a text piece by piece until it ends. `quotes` maps what opens a string to what closes it. Without `ends`
    the first bracket must be closed; else the first of these marks ends the body."""

    def __init__(self, quotes: Mapping[str, str], escapes: bool, ends: Sequence[str] = ()):
        brackets = ["{", "}", "[", "]", "(", ")"] if not ends else []
        self.quotes, self.ends = quotes, ends
        outside = [*quotes, *brackets, *ends]
        inside = {close: [close, "\\"] if escapes else [close] for close in quotes.values()}
        self._marks = {key: marks_of(*marks) for key, marks in {"": outside, **inside}.items()}
        self.closing = ""  # of the string that we are in
        self.depth, self.carry, self.skip, self.failed = 0, "", False, False

    def feed(self, text: str) -> int | None:
        """How much of this piece belongs to the body, when it ends in it; for marks, they included. None: all of it.
        `failed` is set where nothing can be made of it."""
        known = len(self.carry)
        text, self.carry, at = self.carry + text, "", 0
        if self.skip and len(text) > known:
            at, self.skip = known + 1, False
        while match := self._marks[self.closing].search(text, at):
            at, mark = match.end(), match.group()
            if mark == "\\" and self.closing:
                self.skip = at == len(text)
                at += 1
            elif self.closing:
                self.closing = ""
            elif mark in self.quotes:
                self.closing = self.quotes[mark]
            elif mark in self.ends or self._closed(mark):
                return at - known
        self.carry = "" if self.skip else self._marks[self.closing].held(text[min(at, len(text)) :])
        return None

    def _closed(self, bracket: str) -> bool:
        self.depth += 1 if bracket in "{[(" else -1
        self.failed |= self.depth > MAX_DEPTH
        return self.depth <= 0 or self.failed
