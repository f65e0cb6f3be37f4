"""Where a body ends: the bracket that closes its first, or a mark, neither of them inside a string. Linear in the text,
which comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

MAX_DEPTH = 200  # of brackets; Python's own JSON reader gives up at about 1000


class Scanner:
    """Takes a text piece by piece until it ends. `quotes` maps what opens a string to what closes it. Without `ends`
    the first bracket must be closed; else the first of these marks ends the body."""

    def __init__(self, quotes: Mapping[str, str], escapes: bool, ends: Sequence[str] = ()):
        brackets = ["{", "}", "[", "]", "(", ")"] if not ends else []
        self.quotes, self.ends = quotes, ends
        outside = [*quotes, *brackets, *ends]
        inside = {close: [close, "\\"] if escapes else [close] for close in quotes.values()}
        self._find = {"": outside, **inside}
        self._regex = {key: re.compile("|".join(map(re.escape, marks))) for key, marks in self._find.items()}
        self.closing = ""  # of the string that we are in
        self.depth, self.carry, self.skip, self.failed = 0, "", False, False

    def feed(self, text: str) -> int | None:
        """How much of this piece belongs to the body, when it ends in it; for marks, they included. None: all of it.
        `failed` is set where nothing can be made of it."""
        known = len(self.carry)
        text, self.carry, at = self.carry + text, "", 0
        if self.skip and len(text) > known:
            at, self.skip = known + 1, False
        while match := self._regex[self.closing].search(text, at):
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
        self.carry = "" if self.skip else partial(text[min(at, len(text)) :], self._find[self.closing])
        return None

    def _closed(self, bracket: str) -> bool:
        self.depth += 1 if bracket in "{[(" else -1
        self.failed |= self.depth > MAX_DEPTH
        return self.depth <= 0 or self.failed


def partial(text: str, marks: Sequence[str]) -> str:
    """The longest end of a text that one of the marks begins with, but is not all of."""
    longest = max((len(mark) for mark in marks), default=0)
    for size in range(min(len(text), longest - 1), 0, -1):
        end = text[-size:]
        if any(mark.startswith(end) for mark in marks if len(mark) > size):
            return end
    return ""
