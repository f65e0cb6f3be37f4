"""What may reach a terminal. Names and texts of files must not steer it: characters that do are spelled out, at the
two streams for whatever is printed, and in notes and errors before that."""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

MAX_LINE = 2000  # characters of a note or an error

# C0, DEL and C1, and what reverses the direction of what follows (Unicode TR 36).
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# What this program and progress bars write themselves: colours, and on stderr the way back to a line's beginning.
COLOURS = r"\x1b\[[0-9;]{0,16}m"
OWN = {"stdout": re.compile(f"({COLOURS})"), "stderr": re.compile(f"({COLOURS}|\r|\x1b\\[[AK])")}


def printable(text: str) -> str:
    """Text with all that cannot be seen spelled out, line breaks included."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def steerless(text: str) -> str:
    """Text with all that steers a terminal spelled out, but newlines and tabs, in a form that JSON has too."""
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """A note or an error as one printable line of bounded length."""
    line = printable(" ".join(text.split()))
    half = MAX_LINE // 2
    return line if len(line) <= MAX_LINE else f"{line[:half]} … {len(line):,} characters … {line[-half:]}"


def shown(value: object) -> str:
    """A value that somebody gave, in a few words for an error."""
    try:
        found = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or lists in lists
        return f"a {type(value).__name__} of very many parts"
    return found if len(found) <= 60 else f"{found[:60]} …"


_waiting: list[str] | None = None  # notes of a command that may still end with an error


def note(message: str) -> None:
    """Something done otherwise than asked, in one line on stderr: of a command once it has something to show for it, as
    one that fails says one thing only, and what loads a checkpoint twice says it once."""
    if _waiting is None:
        print(f"minillm: {one_line(message)}", file=sys.stderr)
    elif message not in _waiting:
        _waiting.append(message)


def release() -> None:
    """Say what notes there are, and those to come at once."""
    global _waiting
    waiting, _waiting = _waiting, None
    for message in waiting or ():
        note(message)


def error(message: str) -> None:
    """Why nothing is done, in one line on stderr."""
    global _waiting
    _waiting = None
    print(f"minillm: error: {one_line(message)}", file=sys.stderr)


def text(piece: str) -> None:
    """A piece of generated text to stdout: as it is, but for what would steer a terminal."""
    stream: Any = sys.stdout
    release()
    if not stream.isatty():
        stream = getattr(stream, "stream", stream)
    print(steerless(piece) if stream.isatty() else piece, end="", file=stream, flush=True)


class Shown:
    """A stream whose writers need not think of what steers a terminal."""

    def __init__(self, stream: Any, own: re.Pattern[str]):
        self.stream, self.own = stream, own

    def write(self, text: str) -> int:
        if self.own is OWN["stdout"]:
            release()
        if STEERING.search(text):
            parts = self.own.split(text) if self.stream.isatty() else [text]
            text = "".join(part if at % 2 else steerless(part) for at, part in enumerate(parts))
        return int(self.stream.write(text))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Both streams take any text meanwhile, and what steers a terminal is spelled out."""
    global _waiting
    before = sys.stdout, sys.stderr
    if sys.stdout is None or sys.stderr is None:  # closed by the shell: what goes there goes nowhere
        nowhere = open(os.devnull, "w")  # noqa: SIM115  (it lives as long as the process)
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    undo = _lose_nothing()
    streams: Any = sys.stdout, sys.stderr
    if not isinstance(streams[0], Shown):  # the outermost
        _waiting = []
        sys.stdout, sys.stderr = Shown(streams[0], OWN["stdout"]), Shown(streams[1], OWN["stderr"])
    try:
        yield
        release()
    finally:
        if not isinstance(streams[0], Shown):
            _waiting = None
        sys.stdout, sys.stderr = before
        with contextlib.suppress(OSError, ValueError):  # of a stream that is closed by now
            undo()


def _lose_nothing() -> Callable[[], None]:
    """Let stdout take any text, until the result is called. A pipe or file gets UTF-8, whatever a locale or Windows'
    code page has; a terminal, and who has set PYTHONIOENCODING, keeps the encoding, with escapes for what it lacks."""
    if not isinstance(sys.stdout, io.TextIOWrapper) or sys.stdout.errors not in ("strict", "surrogateescape"):
        return lambda: None  # a notebook's, say, which takes all, or told what to do
    stream, encoding, errors = sys.stdout, sys.stdout.encoding, sys.stdout.errors
    chosen = sys.stdout.isatty() or os.environ.get("PYTHONIOENCODING")
    stream.reconfigure(encoding=None if chosen else "utf-8", errors="minillm.escaped")
    return lambda: stream.reconfigure(encoding=encoding, errors=errors)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """As JSON has it, \\u1f3d, so that what is JSON stays so. Said once."""
    assert isinstance(error, UnicodeEncodeError)
    _say_escaped(error.encoding)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end


codecs.register_error("minillm.escaped", _escaped)


@functools.cache
def _say_escaped(encoding: str) -> None:
    note(f"{encoding} lacks characters of this text: set PYTHONIOENCODING=utf-8 to see them")
