"""Calls behind an opening mark: what reads them has, those that are read whole, and marks that close them. What turns
out to be no call of a known tool is handed back as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from minillm.serve.answers.bodies import BODIES, scanner
from minillm.serve.answers.pieces import Piece, new_id
from minillm.serve.answers.scanning import marks_of
from minillm.serve.answers.styles import Style

MAX_LEAD = 300  # characters between an opening mark and its JSON
HEAD = 512  # characters in which a call must name its function to be given out while it is written


class Out:
    """Where calls go: pieces, with an index and an id for each call."""

    def __init__(self, style: Style, tools: Mapping[str, Mapping[str, Any]], early: bool):
        self.style, self.tools, self.early = style, tools, early
        self.pieces: list[Piece] = []
        self.count = 0

    def call(self, name: str, known: str | None = None) -> None:
        self.pieces.append(Piece("call", name, self.count, known or new_id(self.style.ids)))
        self.count += 1

    def arguments(self, text: str) -> None:
        self.pieces.append(Piece("arguments", text, self.count - 1))


class Calls(Protocol):
    """Reads on behind an opening mark. `push` returns what is behind the calls once they have ended. Then `back` is
    what was no call, as it was written, up to there."""

    back: str

    def push(self, text: str) -> str | None: ...

    def finish(self, whole: bool) -> None:
        """Nothing more comes: what is unfinished goes `back`, unless it has been given out. `whole`: the model meant
        to end here."""


class WholeCalls:
    """Waits for the end of a body, and reads it."""

    def __init__(self, style: Style, mark: str, out: Out):
        self.body = BODIES[style.body]
        self.out, self.closes, self.back = out, style.closes, ""
        self.inside = mark == style.bare  # the mark is the beginning of the body, which ends with a bracket
        self.mark, self.size = mark, 0
        self.scanner = scanner(self.body, () if style.bare else style.closes)
        self.rest = Closes(style.closes if style.bare else ())
        self.parts: list[str] = []
        self.done = False

    def push(self, text: str) -> str | None:
        if self.done:
            return self.rest.push(text)
        end = self.scanner.feed(text)
        piece = text if end is None else text[:end]
        self.parts.append(piece)
        self.size += len(piece)
        if not self._begins(len(piece)):
            whole = self.mark * (not self.inside) + "".join(self.parts) + text[len(piece) :]
            self.back = whole[: len(self.mark)]
            return whole[len(self.mark) :]
        if self.scanner.failed:
            self.back = self.mark * (not self.inside) + "".join(self.parts)
            return text[len(piece) :]
        if end is None:
            return None
        self._read("".join(self.parts))
        self.done = True
        return text[end:] if self.back else self.rest.push(text[end:])

    def _begins(self, new: int) -> bool:
        """Whether this may still be a body, as far as its first characters tell."""
        if self.size - new > HEAD:
            return True
        return re.fullmatch(self.body.first, "".join(self.parts)[:HEAD], re.DOTALL) is not None

    def _read(self, text: str) -> None:
        inner = next((text.removesuffix(mark) for mark in self.closes if text.endswith(mark)), text)
        try:
            calls = self.body.read(inner, self.out.tools)
        except (ValueError, RecursionError):
            calls = []
        if not calls or any(name not in self.out.tools for name, _ in calls):
            self.back = self.mark * (not self.inside) + text
            return
        for name, arguments in calls:
            self.out.call(name)
            self.out.arguments(arguments)

    def finish(self, whole: bool) -> None:
        text = "".join(self.parts)
        if self.done:
            self.back = self.rest.pending
        elif whole:  # a closing mark may be the one that generation stops at
            self._read(text)
        else:
            self.back = self.mark * (not self.inside) + text


class Closes:
    """Passes marks in their order, each if it is there, and the white space before them."""

    def __init__(self, marks: tuple[str, ...]):
        self.marks, self.pending = list(marks), ""

    def push(self, text: str) -> str | None:
        """What is behind them; None while that cannot be told."""
        self.pending += text
        while self.marks:
            text = self.pending.lstrip()
            if len(self.pending) - len(text) > MAX_LEAD:
                break
            mark = next((mark for mark in self.marks if text.startswith(mark)), None)
            if mark is not None:
                self.marks = self.marks[self.marks.index(mark) + 1 :]
                self.pending = text[len(mark) :]
            elif not text or marks_of(*self.marks).held(text) == text:
                return None
            else:
                break
        return self.pending
