"""Commands that do what no case should, to see that it is noticed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from minillm import cli


def abort(argv: Sequence[str]) -> int:
    os.abort()


def wait(argv: Sequence[str]) -> int:
    time.sleep(1000)
    return 0


@cli.command_line
def fill(argv: Sequence[str] | None = None) -> int:
    return len(bytearray(4 * 10**9))


def let_through(argv: Sequence[str]) -> int:
    raise BaseException("as a panic of a library in Rust")
