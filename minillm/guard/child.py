"""Programs by strangers, which chat templates and some tokenizers are, in a process of their own under limits.

What such a program does cannot be bounded by looking at it. A process can: of time by a clock beside it, of memory by
the system (where that counts address space: Linux), and an abort ends only the process.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minillm
from minillm.guard.pipe import read, write

MEMORY = 512_000_000  # bytes more than the process has at its start, where nobody says otherwise
MAX_MEMORY = 640_000_000  # and at most, whoever says so
MAX_ANSWER = 16_000_000  # bytes, of which this process may make twenty times as many
START_SECONDS = 15.0  # until the process is there; a question's own time begins then
START = "import sys; sys.path[:] = sys.argv[2:]; from minillm.guard import worker; worker.serve(sys.argv[1])"


class Child:
    """A process that answers with the function `answer(*request)` of the module `service`.

    It starts at the first question, or when it is told to, begins with `service.prepare(setup)`, and stays; a new one
    takes its place after one that was ended. Threads take turns, and a fork of this process gets a child of its own.
    Questions, which are ours, go by marshal, as that keeps tuples and keys that are numbers; answers are JSON.
    """

    def __init__(self, service: str, setup: Any = None, memory: int = MEMORY):
        self.service, self.setup, self.memory = service, setup, memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared = False
        _children.add(self)

    def start(self) -> None:
        """Begin to start the process, and do not wait for it. Raises ChildProcessError where the system has none."""
        with self._lock:
            if self._process is None:
                self._start()

    def ask(self, request: tuple[Any, ...], seconds: float, more: int = 0) -> Any:
        """What the service answers. Raises ValueError with its words where it raised one, and when it was ended as it
        took more than `seconds`, preparing included, or than its memory and `more` bytes. Raises ChildProcessError
        where there is no such process to be had, for which the request is not to blame."""
        with self._lock:
            try:
                if self._process is not None and self._process.poll() is not None and self._prepared:
                    self._end()  # it ended while nobody asked
                if self._process is None:
                    self._start()
                if not self._prepared:
                    seconds -= self._prepare(seconds)
                return self._exchange(request, seconds, self.memory + more)
            except _Refused as error:
                raise ValueError(str(error)) from None
            except BaseException:  # Ctrl-C too: an answer may be on its way, and would be taken for the next one's
                self._end()
                raise

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """In a fork, where only the thread that forked goes on: the process is the parent's, who goes on with it."""
        self._lock = threading.Lock()
        if (process := self._process) is not None:
            self._process = None
            self._finalizer.detach()
            process.returncode = 0  # or it would be said to run still, when it is collected
            _close(process)

    def _start(self) -> None:
        paths = [str(Path(minillm.__file__).parent.parent), *map(os.path.abspath, sys.path)]
        command = [sys.executable or "", "-I", "-S", "-c", START, self.service, *paths]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        try:
            process = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=nowhere)
        except OSError as error:
            raise _no_process(str(error)) from None
        self._process, self._prepared = process, False
        self._finalizer = weakref.finalize(self, _end, process)

    def _prepare(self, seconds: float) -> float:
        """Wait for the process, and have it prepare its service; seconds that the latter took."""
        process: Any = self._process
        with _clock(process, START_SECONDS):
            try:
                there = read(process.stdout, MAX_ANSWER)
            except (OSError, ValueError):
                there = None
        if there is None:
            self._end()
            raise _no_process(f"{process.args[0]} ended with {process.returncode}")
        start = time.monotonic()
        try:
            self._exchange((self.setup,), seconds, self.memory)
        except _Refused:
            self._end()
            raise
        self._prepared = True
        return time.monotonic() - start

    def _end(self) -> None:
        if self._process is not None:
            self._process = None
            self._finalizer()

    def _exchange(self, request: tuple[Any, ...], seconds: float, memory: int) -> Any:
        process: Any = self._process
        memory = min(memory, MAX_MEMORY)
        with _clock(process, seconds) as clock:
            try:
                write(process.stdin, marshal.dumps((seconds, memory, request)))
                data = read(process.stdout, MAX_ANSWER)
            except OSError:  # a broken pipe, which has another number on Windows
                data = None
        if clock.rang:
            raise ValueError(f"it took more than the {seconds:.3g} seconds it has")
        if data is None:
            raise ValueError(f"it took more than {memory // 1_000_000} MB of memory, or ended by itself")
        answer = json.loads(data.decode("utf-8", "surrogatepass"))
        if "refused" in answer:
            raise _Refused(answer["refused"])
        return answer["value"]


class _Refused(Exception):
    """An error that the service raised, and went on."""


class _Clock:
    rang = False


@contextlib.contextmanager
def _clock(process: subprocess.Popen[bytes], seconds: float) -> Iterator[_Clock]:
    """Ends the process when the time is over, by which reading from it ends too."""
    clock = _Clock()

    def ring() -> None:
        clock.rang = True
        process.kill()

    timer = threading.Timer(max(seconds, 0.0), ring)
    timer.daemon = True
    timer.start()
    try:
        yield clock
    finally:
        timer.cancel()
        timer.join()  # whether it rang is known from here on


def _no_process(why: str) -> ChildProcessError:
    return ChildProcessError(
        f"no process of its own for a chat template or tokenizer ({why}); is sys.executable a Python, is there memory?"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        pipe.close()  # type: ignore[union-attr]


def _forget_all() -> None:
    for child in list(_children):
        child.forget()


_children: weakref.WeakSet[Child] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
