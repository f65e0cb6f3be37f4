"""Ids of an answer in, its text out: what is shown, what is reasoning, and what stop strings are looked for in.

Special tokens fall out of a text. Those that give an answer its structure are in the tables below: what they delimit
stays apart. They count as marks where the vocabulary has them as special tokens, whatever the model; anywhere else they
are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minillm.text.tokenizer import TextStream, Tokenizer

# Reasoning between two marks.
PAIRS = {"<think>": "</think>", "[THINK]": "[/THINK]", "<|cot_start|>": "<|cot_end|>"}
# The same behind a line that says what it is: a header that ends with its line.
NAMED, NAMED_END, THOUGHT = "<|channel>", "<channel|>", "thought"
# The harmony format: START role CHANNEL name MESSAGE body END, again and again. A recipient and a content type may
# stand there too, before MESSAGE; a call of a tool ends with <|call|>, the last message with <|return|>.
START, CHANNEL, MESSAGE, ENDS = "<|start|>", "<|channel|>", "<|message|>", ("<|end|>", "<|call|>", "<|return|>")
CHANNELS = {"analysis": "reasoning", "final": "text"}
MAX_HEADER, HEADER_WORDS = 200, 3  # characters and words: the longest names a channel, a tool and a type
MARKS = {*PAIRS, *PAIRS.values(), NAMED, NAMED_END, START, CHANNEL, MESSAGE, *ENDS, "<|constrain|>"}


@dataclass(frozen=True)
class Chunk:
    """What a token adds: `raw` with special tokens in it, and `shown`, which belongs to "text" or "reasoning"."""

    raw: str
    shown: str
    part: str

    def split(self, at: int) -> tuple[Chunk, Chunk]:
        """Cut in two at a place in `raw`. What the two texts do not share stands in front: a special token, or the
        space before a first word, which decoders strip."""
        cut = max(0, len(self.shown) - len(self.raw) + at)
        return Chunk(self.raw[:at], self.shown[:cut], self.part), Chunk(self.raw[at:], self.shown[cut:], self.part)


class Parts:
    """Which part of an answer comes now: "text", "reasoning", or the "header" of a message. Channels that are not in
    the table, those of tools, are text with their marks."""

    def __init__(self, marked: bool = False) -> None:
        self.part = "text"
        self.header, self.known = "", 0  # of the header, how much the prompt has
        self.quoted = self.reasoned = False
        self.marked = marked  # whether there are messages of the harmony format

    def enter(self, mark: str) -> str:
        """Take a mark; returns what it adds to the part that begins or ends with it."""
        if mark in PAIRS:
            return self._reasoning()
        if mark in PAIRS.values():
            self.part = "text"
        elif mark == NAMED_END:
            left, self.part = self.abandon() if self.part == "header" else "", "text"
            return left.removeprefix(NAMED)
        elif mark == NAMED:
            self.part, self.header, self.known = "header", mark, 0
        elif self.part == "header" and mark != MESSAGE:
            self.header, self.known = (mark, 0) if mark == START else (self.header + mark, self.known)
        elif mark == CHANNEL or (mark == START and self.marked):
            self.part, self.header, self.known, self.marked = "header", mark, 0, True
        elif mark == MESSAGE:
            return self._body()
        elif self.marked:
            self.part, quoted, self.quoted = "text", self.quoted, False
            return mark if quoted else ""
        return ""

    def words(self, piece: str) -> str:
        """Take a text; returns what it adds to the part."""
        if self.part != "header":
            return piece
        self.header += piece
        name, line, rest = self.header.partition("\n")
        if line and name == NAMED + THOUGHT:
            self.header = ""
            return self._reasoning() + rest
        if line and name.startswith(NAMED):
            return self.abandon()
        return self.abandon() if len(self.header) - self.known > MAX_HEADER else ""

    def abandon(self) -> str:
        """Take a header that does not end for what it is: text. Returns it."""
        header, self.part, self.header = self.header[self.known :], "text", ""
        self.known = 0
        return header

    def _body(self) -> str:
        _, named, channel = self.header.rpartition(CHANNEL)
        name = channel.split()[0] if named and channel.split() else "final"
        header, self.header, self.known, self.marked = self.header[self.known :], "", 0, True
        if CHANNELS.get(name) == "reasoning":
            return self._reasoning()
        self.part, self.quoted = "text", name not in CHANNELS
        return header + MESSAGE if self.quoted else ""

    def _reasoning(self) -> str:
        again, self.part, self.reasoned = self.reasoned, "reasoning", True
        return "\n" if again else ""


class Answer:
    """A stream of ids as chunks. The prompt says in which part the answer begins. Without `raw` no stop strings are
    looked for, and the raw text is what is shown."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], raw: bool):
        self.tokenizer = tokenizer
        self.parts = Parts()
        marks = {token: mark for token in set(prompt) if (mark := self._mark(token))}
        ends = {token for token in set(prompt) if not tokenizer.decode([token])} - {*marks} if marks else set()
        run: list[int] = []
        for token in prompt if marks else ():
            if token in ends or marks.get(token) == START:  # of a turn: what was open in it is no more
                self.parts, run = Parts(self.parts.marked), []
            if token in marks:
                self.parts.words(tokenizer.decode(run))
                self.parts.enter(marks[token])
                run = []
            elif self.parts.part == "header":
                run.append(token)
        self.parts.words(tokenizer.decode(run))
        self.parts.reasoned, self.parts.known = self.parts.part == "reasoning", len(self.parts.header)
        self._shown = TextStream(tokenizer)
        self._raw = TextStream(tokenizer, skip_special=False) if raw else None

    def push(self, token: int) -> list[Chunk]:
        """What this token completes."""
        raw = self._raw.push(token) if self._raw else None
        if mark := self._mark(token):
            before = self._chunk("", self._shown.finish())
            self._shown = TextStream(self.tokenizer)
            shown = self.parts.enter(mark)
            return [before, Chunk(shown if raw is None else raw, shown, self.parts.part)]
        return [self._chunk(raw, self._shown.push(token))]

    def finish(self) -> list[Chunk]:
        """What is left when nothing more will come."""
        last = self._chunk(self._raw.finish() if self._raw else None, self._shown.finish())
        if self.parts.part != "header" or len(self.parts.header.split()) <= HEADER_WORDS:
            return [last]
        header = self.parts.abandon()
        return [last, Chunk("" if self._raw else header, header, "text")]

    def _chunk(self, raw: str | None, piece: str) -> Chunk:
        shown = self.parts.words(piece)
        return Chunk(shown if raw is None else raw, shown, self.parts.part)

    def _mark(self, token: int) -> str | None:
        name = self.tokenizer.decode([token], skip_special=False)
        return name if name in MARKS and not self.tokenizer.decode([token]) else None
