"""Loops compiled in a process beside this one, while their ops go on in plain PyTorch: the first run on a machine need
not wait half a minute for its first word.

The process is asked for one signature of a loop at a time, by a line of JSON, and answers each with a newline when the
compiled loop lies in the folder where it is kept. It finishes what it was asked for even when nobody waits any more, so
that the next run finds it. A thread would not do: numba holds Python's lock while it compiles.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np

from minillm.guard.screen import note
from minillm.ops.cpu import usable

PATIENCE = 10  # by which it stands back behind others


class Beside:
    """What this process has asked for, and how much of it is still to come."""

    def __init__(self) -> None:
        self.asked: dict[Any, int] = {}
        self.settled: set[Any] = set()  # loops that are there, by the types of the arrays they are called with
        self.ready, self.gone = 0, False
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def waiting(self) -> bool:
        return self.ready < len(self.asked) and not self.gone

    def has(self, call: Any, given: tuple[Any, ...]) -> bool:
        """Whether a loop is compiled for arguments like these; asks for it the first time. True too where nobody can be
        asked: then it compiles here."""
        arrays = call, *[each.dtype for each in given if type(each) is np.ndarray]
        if arrays in self.settled:
            return True
        found = self._has(call, given)
        if found:
            self.settled.add(arrays)
        return found

    def _has(self, call: Any, given: tuple[Any, ...]) -> bool:
        compiled = call.compiled
        types = tuple(compiled.typeof_pyval(each) for each in given)
        if types in compiled.overloads or self.gone:
            return True
        number = self.asked.get((call, types))
        if number is None:
            if call.is_kept(types):
                return True
            number = self.asked[call, types] = len(self.asked)
            self._ask([call.__module__, call.__name__, _described(given)])
        return number < self.ready or self.gone

    def _ask(self, what: list[Any]) -> None:
        try:
            if self.process is None:
                self._start()
            assert self.process and self.process.stdin  # noqa: PT018
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            self.process.stdin.flush()
        except (OSError, RuntimeError):  # of a process, of a thread to listen
            self.gone = True

    def _start(self) -> None:
        # Where modules are looked for is as here: the current folder, which -c and -m would add, may hold anything.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__package__} import beside; beside.main()"
        command, pipe = [sys.executable, "-c", code], subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True
        )
        threading.Thread(target=self._listen, daemon=True).start()
        if sys.stderr.isatty():
            note("compiling loops for this processor, once, for about half a minute; until then plain PyTorch")

    def _listen(self) -> None:
        assert self.process and self.process.stdout  # noqa: PT018
        while self.process.stdout.read(1):
            self.ready += 1
        self.gone = True


def start() -> None:
    """From now on loops that are missing are compiled beside. What is written may then depend on when they come, as far
    as the last bit of a product decides: a thing for a command line of one text, not for what is compared."""
    usable.beside = usable.beside or Beside()


def _described(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_described(each) for each in value]
    if isinstance(value, np.ndarray):
        return {"array": value.dtype.name}
    return {"number": value.dtype.name} if isinstance(value, np.generic) else value


def _alike(described: Any) -> Any:
    """A value of the type of what was described."""
    if isinstance(described, list):
        return tuple(_alike(each) for each in described)
    if isinstance(described, dict):
        ((kind, dtype),) = described.items()
        return np.empty(0, dtype) if kind == "array" else np.dtype(dtype).type(0)
    return described


def main() -> None:
    if hasattr(os, "nice"):
        os.nice(PATIENCE)
    for line in sys.stdin.buffer:
        module, name, given = json.loads(line)
        compiled = getattr(importlib.import_module(module), name).compiled
        compiled.compile(tuple(compiled.typeof_pyval(each) for each in _alike(given)))
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(1, b"\n")
