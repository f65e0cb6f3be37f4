"""One guard around every parser that others wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minillm.guard.screen import printable

MAX_REASON = 200  # characters of a parser's own words


@contextmanager
def reading(source: str | Path, problem: str, advice: str = "") -> Iterator[None]:
    """Whatever a parser raises over `source` becomes one ValueError: "source: problem (its words); advice".

    Parsers document few of their exceptions, and a panic of a library in Rust is a BaseException. Ctrl-C, an exit, and
    a lack of memory or of a process stay what they are.
    """
    try:
        yield
    except BaseException as error:
        raise refusal(error, source, problem, advice) from None


def refusal(error: BaseException, source: str | Path, problem: str, advice: str = "") -> BaseException:
    """What `reading` raises for an error; for calls too frequent for a context manager."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, ChildProcessError)):
        return error
    return ValueError(f"{source}: {problem} ({words(error)}){'; ' if advice else ''}{advice}")


def words(error: BaseException) -> str:
    """What an exception says, in one line that does not run on."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    name = type(error).__name__
    return printable(said[:MAX_REASON]) if said and not isinstance(error, KeyError) else f"{name} {said[:MAX_REASON]}"
