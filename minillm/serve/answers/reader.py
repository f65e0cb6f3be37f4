"""An answer taken apart piece by piece: linear in its text, and the same however it is cut.

Content, reasoning and calls of tools. What may be the beginning of a mark is held back, and so is white space until
something follows it: none of it stands before a call, nor around reasoning. A mark of a call in reasoning counts at the
beginning of a line. Calls that are invalid, or of no known tool, come back as the text that they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from minillm.serve.answers.calls import Calls, Out, WholeCalls
from minillm.serve.answers.jsoncalls import JsonCalls
from minillm.serve.answers.pieces import Piece, merged
from minillm.serve.answers.scanning import Marks, marks_of
from minillm.serve.answers.styles import Style

START, CHANNEL, MESSAGE, ENDS = "<|start|>", "<|channel|>", "<|message|>", ("<|end|>", "<|return|>", "<|call|>")
MAX_HEADER = 300  # characters
CHUNK = 4096  # characters looked at together: what is copied for each mark
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")
_ANALYSIS = re.compile(re.escape(CHANNEL) + r"\s*analysis\b")


class Reader:
    """Reads one answer of a style.

    `prompt_tail` is the end of the rendered prompt, which says where the answer begins: in reasoning, say. `tools` maps
    names to the JSON schemas of parameters; without any, calls are text. `specials` are special tokens as text, which
    are not shown. `early`: arguments are given out while they come, so that it may turn out too late that they are not
    JSON, and so is reasoning; else only what is valid, and reasoning that the model ended with is content alone.
    """

    def __init__(
        self, style: Style, prompt_tail: str, tools: Mapping[str, Mapping[str, Any]] | None = None,
        early: bool = True, specials: Collection[str] = (),
    ):  # fmt: skip
        self.style, self.early = style, early
        self.out = Out(style, {}, early)
        self.part: Literal["content", "reasoning", "header"] = "content"
        self.closing = ""  # of the reasoning that we are in
        self.buffer, self.known = "", 0  # text not yet looked at, and how much of it the prompt has
        self.calls: Calls | None = None
        self.specials = tuple(special for special in specials if special)
        self._clear()
        self._begin(prompt_tail)
        self.out.tools = tools or {}
        self.marks = self._marks()

    def _clear(self) -> None:
        self.thoughts: list[str] = []
        self.gap: list[str] = []  # white space that may be dropped
        self.fresh, self.trim, self.last, self.joint = True, False, "\n", ""
        self.answered = self.reasoned = False

    def _begin(self, tail: str) -> None:
        """Go to where the prompt leaves off."""
        turns = list(self.style.turn.finditer(tail))
        begins = turns[-1].end() if turns else None
        if begins is None:  # no way to tell what a user wrote: only what stands at the very end counts
            opens = [each.opens for each in self.style.thinking]
            ends = (tail.rindex(mark.strip()) for mark in opens if tail.rstrip().endswith(mark.strip()))
            begins = next(ends, len(tail) - len(marks_of(*opens).held(tail)))
        self.marks = self._marks()
        self.push(tail[begins:])
        if self.part != "header":
            self.buffer = marks_of(*(each.opens for each in self.style.thinking)).held(self.buffer)
        self.known, self.out.pieces = len(self.buffer), []
        self._clear()
        self.trim = self.part == "reasoning"

    def _marks(self) -> dict[str, Marks]:
        style = self.style
        opens = [*style.opens] if self.out.tools and style.body else []
        shared = [*opens, *style.drops, *self.specials]
        if style.channels:
            shared += [START, CHANNEL, *ENDS]
        found = {"content": [*shared, *(each.opens for each in style.thinking)]}
        for each in style.thinking:
            found[each.closes] = [*shared, each.closes]
        found["analysis"] = shared
        return {key: marks_of(*marks) for key, marks in found.items()}

    def push(self, raw: str) -> list[Piece]:
        """What this text adds."""
        for begins in range(0, len(raw), CHUNK):
            self.buffer += raw[begins : begins + CHUNK]
            while self.buffer and self._step():
                pass
        pieces, self.out.pieces = self.out.pieces, []
        return merged(pieces)

    def finish(self, reason: str) -> list[Piece]:
        """What is left at the end: "stop" where the model has ended its answer, else it was cut."""
        if self.calls:
            calls, self.calls = self.calls, None
            calls.finish(reason == "stop")
            self._back(calls.back if calls.back.strip() else "")
        if self.part == "header":
            self.part = "content"
            if START in self.buffer[self.known :] or CHANNEL in self.buffer[self.known :]:
                self.buffer = ""  # of a message that has not begun
        self._unless_known(self.buffer)
        self.buffer = ""
        if self.part == "reasoning" and self.thoughts:
            unanswered = reason == "stop" and not self.answered and not self.out.count
            if unanswered or not self.early:
                kind: Literal["content", "reasoning"] = "content" if unanswered else "reasoning"
                self.out.pieces.append(Piece(kind, "".join(self.thoughts).strip()))
        elif self.part == "content" and not self.trim:
            self.out.pieces.append(Piece("content", "".join(self.gap)))
        pieces, self.out.pieces = self.out.pieces, []
        return merged(pieces)

    def _step(self) -> bool:
        """Take from the buffer what is clear; returns whether there may be more of it."""
        if self.calls:
            text, self.buffer = self.buffer, ""
            rest = self.calls.push(text)
            if rest is not None:
                calls, self.calls, self.buffer = self.calls, None, rest
                self._back(calls.back)
            return rest is not None
        if self.part == "header":
            return self._head()
        return self._plain() if self._bare() is None else self.calls is not None

    def _back(self, text: str) -> None:
        """After a call, or what looked like one."""
        if text:
            self._text(text)
        else:
            self._anew()

    def _anew(self) -> None:
        """Text begins again, behind something else: on a line of its own, if there has been some before."""
        self.fresh = self.trim = True
        self.gap, self.last = [], "\n"
        self.joint = "\n" if (self.answered if self.part == "content" else self.reasoned) else ""

    def _bare(self) -> bool | None:
        """Whether the answer begins as a call without a mark does; None where it does not."""
        bare = self.style.bare
        if not bare or not self.fresh or self.answered or self.part != "content" or not self.out.tools:
            return None
        text = self.buffer.lstrip()
        if text.startswith(bare):
            self._text(self.buffer[: len(self.buffer) - len(text)])
            self._open(bare, text[len(bare) :])
            return True
        return None

    def _open(self, mark: str, rest: str) -> None:
        kind = JsonCalls if self.style.body == "json" else WholeCalls
        self.calls, self.buffer, self.fresh = kind(self.style, mark, self.out), rest, False
        if mark == self.style.bare:
            self.buffer = mark + rest

    def _plain(self) -> bool:
        """Take text up to the next mark, and the mark; returns whether there was one."""
        marks = self.marks["content" if self.part == "content" else self.closing or "analysis"]
        match = marks.search(self.buffer)
        if match is None:
            held = len(marks.held(self.buffer))
            taken = len(self.buffer) - held
            text, self.buffer = self.buffer[:taken], self.buffer[taken:]
            self._unless_known(text)
            return False
        mark = match.group()
        self._unless_known(self.buffer[: match.start()])
        rest, self.known = self.buffer[match.end() :], 0
        self._enter(mark, rest)
        return True

    def _unless_known(self, text: str) -> None:
        """Show a text, less what of it the prompt has."""
        known, self.known = min(self.known, len(text)), max(0, self.known - len(text))
        self._text(text[known:])

    def _enter(self, mark: str, rest: str) -> None:
        """Pass a mark, with what it begins or ends."""
        self.buffer = rest
        thinking = next((each for each in self.style.thinking if each.opens == mark), None)
        if self.style.channels and mark in (START, CHANNEL):
            self._leave()
            self.part, self.buffer = "header", mark + rest
        elif mark == self.closing or (self.style.channels and mark in ENDS):
            self._leave()
        elif mark in self.style.opens:
            if self.part == "reasoning" and self.last not in ("", "\n"):
                self._text(mark)
            else:
                self._open(mark, rest)
        elif thinking and self.part == "content":
            if thinking.anywhere or self.fresh:
                self._think(thinking.closes)
            else:
                self._text(mark)

    def _think(self, closing: str) -> None:
        self.part, self.closing, self.thoughts = "reasoning", closing, []
        self._anew()

    def _leave(self) -> None:
        """Reasoning, or a message, ends."""
        if self.part == "reasoning":
            if not self.early:
                self.out.pieces.append(Piece("reasoning", "".join(self.thoughts)))
            self.thoughts, self.part = [], "content"
            self._anew()
        self.part, self.closing = "content", ""

    def _head(self) -> bool:
        """Read a header, up to its message: a call, reasoning, or content. Returns whether it has ended."""
        size = self.buffer.find(MESSAGE)
        if size < 0 and len(self.buffer) < MAX_HEADER + len(MESSAGE):
            return False
        if not 0 <= size <= MAX_HEADER:
            self.part, header, self.buffer = "content", self.buffer[:MAX_HEADER], self.buffer[MAX_HEADER:]
            self._unless_known(header)
            return True
        header, self.buffer = self.buffer[:size], self.buffer[size + len(MESSAGE) :]
        written, self.known = header[self.known :] + MESSAGE, 0
        recipient = _RECIPIENT.search(header)
        self.part = "content"
        if recipient and recipient[1] in self.out.tools:
            self.calls = JsonCalls(self.style, written, self.out, recipient[1])
        elif recipient:
            self._text(written)
        elif _ANALYSIS.search(header):
            self._think("")
        elif self.answered:
            self._anew()
        return True

    def _text(self, text: str) -> None:
        """Show a text as content or reasoning, less white space that it begins or ends with."""
        if not text:
            return
        self.last = text[-1]
        shown = text.rstrip()
        if not shown:
            if not self.trim:
                self.gap.append(text)
            return
        before = "" if self.trim else "".join(self.gap)
        piece = before + (shown.lstrip() if self.trim else shown)
        self.gap, self.trim = [text[len(shown) :]], False
        piece, self.joint = self.joint + piece, ""
        if self.part == "content":
            self.answered, self.fresh = True, False
            self.out.pieces.append(Piece("content", piece))
            return
        self.reasoned = True
        self.thoughts.append(piece)
        if self.early:
            self.out.pieces.append(Piece("reasoning", piece))
