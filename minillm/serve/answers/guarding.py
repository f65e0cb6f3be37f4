"""Marks are tokens: where a vocabulary has a mark as one token, other tokens whose text spells it are text.

So that nobody can make a model write a call by having it repeat one. What looks for marks sees text; a `GUARD` inside
what is only spelled hides it, and is taken out again with the pieces. It is half a surrogate, which no decoder makes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from minillm.serve.answers.scanning import marks_of

GUARD = "\udc00"


class Guarded:
    """The text of an answer as it comes, with guards. `ids` are the tokens of the marks that are tokens."""

    def __init__(self, ids: Mapping[str, int]):
        self.ids, self.marks = ids, marks_of(*ids)
        self.at, self.left = 0, ""  # how much was given out, and what of it may be the beginning of a mark

    def push(self, text: str, tokens: Sequence[int], ends: Sequence[int]) -> str:
        """What can be given out. `ends` says where in the whole text each of `tokens` ends."""
        return self._through(text, tokens, ends, final=False)

    def finish(self, tokens: Sequence[int], ends: Sequence[int]) -> str:
        """The rest."""
        return self._through("", tokens, ends, final=True)

    def _through(self, text: str, tokens: Sequence[int], ends: Sequence[int], final: bool) -> str:
        text, begun, parts = self.left + text, 0, []
        while match := self.marks.search(text, begun):
            end = self.at + match.end()
            is_token = self.ids[match.group()] in tokens[bisect_left(ends, end) : bisect_right(ends, end)]
            cut = match.end() if is_token else match.start() + 1
            parts += [text[begun:cut], "" if is_token else GUARD]
            begun = cut
        rest = text[begun:]
        held = "" if final else self.marks.held(rest)
        parts.append(rest[: len(rest) - len(held)])
        self.at, self.left = self.at + len(text) - len(held), held
        return "".join(parts)
