"""`tokenizer.json` through the tokenizers library, in this process where all that the file asks for is known to end
(`program.py`), and else in one of its own, under limits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minillm.guard.child import MEMORY, Child
from minillm.guard.files import read_bytes
from minillm.guard.parsing import reading, refusal
from minillm.text import program
from minillm.text.encoding import Added, Encoding

MAX_BYTES = 64_000_000
MAX_BYTES_ELSEWHERE = 24_000_000  # which both processes hold, and the memory of both counts
SECONDS = 10.0  # of what the other process takes longer than it should, building and all calls together
SECONDS_A_CALL, SECONDS_A_CHARACTER = 0.02, 1e-5
MEMORY_A_BYTE = 30  # of the file
MEMORY_A_CHARACTER = 300


class JsonBackend:
    """`remarks` are what is done otherwise than the files say, and `unusual` is why it runs in a process of its own, or
    None. Raises ValueError for a file that is no tokenizer, and for a text or ids that it has no answer to."""

    def __init__(self, path: Path, added: Added):
        self.path = path
        data = read_bytes(path, MAX_BYTES)
        self.encoding: Any = None
        with reading(path, "not a tokenizer the tokenizers library can read"):
            self.unusual = program.unusual(data, added)
            if self.unusual is None:
                self.encoding = Encoding(data, added)
                self.unusual = program.unusual_built(self.encoding.tokenizer)
            if self.unusual is not None and len(data) > MAX_BYTES_ELSEWHERE:
                limit = f"more than the {MAX_BYTES_ELSEWHERE:,} where {self.unusual}"
                raise ValueError(f"{len(data):,} bytes, {limit}")
            if self.unusual is not None:
                self.encoding = _Elsewhere(data, added)
        self.most_blanks = program.most_blanks(data)
        self.advice = "is it valid UTF-8?" if self.unusual is None else f"{path.name} has limits, as {self.unusual}"
        self.size: int = self.encoding.size
        self.remarks: list[str] = self.encoding.remarks

    def encode(self, text: str, special: bool) -> list[int]:
        run = self.most_blanks
        if any(text[at : at + run].isspace() for at in range(0, len(text) - run + 1, run)):
            raise ValueError(f"{self.path}: cannot encode this text (over {run:,} blanks in a row); leave some out")
        try:
            return self.encoding.encode(text, special)
        except BaseException as error:  # a bare Exception: lone surrogates, or a vocabulary without a word for it
            raise refusal(error, self.path, "cannot encode this text", self.advice) from None

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        try:
            return self.encoding.decode(ids, skip_special)
        except BaseException as error:
            raise refusal(error, self.path, "cannot decode these ids", self.advice if self.unusual else "") from None

    def id_of(self, token: str) -> int | None:
        with reading(self.path, f"cannot look up the token {token[:60]!r}"):
            return self.encoding.id_of(token)

    def name_of(self, token: int) -> str | None:
        with reading(self.path, f"cannot look up the token {token}"):
            return self.encoding.name_of(token)


class _Elsewhere:
    """An `Encoding` in a process of its own. Raises ValueError as `Child.ask` does."""

    def __init__(self, data: bytes, added: Added):
        self.child = Child("minillm.text.encoding", (data, added), MEMORY + MEMORY_A_BYTE * len(data))
        self.seconds = SECONDS  # left
        self.size, self.remarks = self._ask("about", "")

    def encode(self, text: str, special: bool) -> Any:
        return self._ask("encode", text, special)

    def decode(self, ids: Sequence[int], skip_special: bool) -> Any:
        return self._ask("decode", list(ids), skip_special)

    def id_of(self, token: str) -> Any:
        return self._ask("id_of", token)

    def name_of(self, token: int) -> Any:
        return self._ask("name_of", token)

    def _ask(self, name: str, given: Any, *others: Any) -> Any:
        """A stream asks for each token: what is slow must not be so again and again."""
        size = len(given) if hasattr(given, "__len__") else 1
        self.seconds = min(self.seconds + SECONDS_A_CALL + SECONDS_A_CHARACTER * size, SECONDS)
        start = time.monotonic()
        try:
            made = self.child.ask((name, given, *others), self.seconds, MEMORY_A_CHARACTER * size)
        except ValueError:
            self.seconds = SECONDS
            raise
        self.seconds -= time.monotonic() - start
        return made
