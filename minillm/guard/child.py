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
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import minillm

MEMORY = 512_000_000  # bytes more than the process has at its start, where nobody says otherwise
MAX_ANSWER = 128_000_000  # bytes
START_SECONDS = 30.0
START = "import sys; sys.path[:] = sys.argv[2:]; from minillm.guard import worker; worker.serve(sys.argv[1])"


class Child:
    """A process that answers with the function `answer(*request)` of the module `service`.

    It starts at the first question, begins with `service.prepare(setup)`, and stays; a new one takes its place after
    one that was ended. Threads take turns, and a fork of this process gets a child of its own. Questions, which are
    ours, go by marshal, as that keeps tuples and keys that are numbers; answers are JSON.
    """

    def __init__(self, service: str, setup: Any = None, memory: int = MEMORY):
        self.service, self.setup, self.memory = service, setup, memory
        self._forget()

    def ask(self, request: tuple[Any, ...], seconds: float, more: int = 0) -> Any:
        """What the service answers. Raises ValueError with its words where it raised one, and when it was ended as it
        took more than `seconds`, or than its memory and `more` bytes."""
        if self._owner != os.getpid():
            self._forget()
        with self._lock:
            try:
                if self._process is None:
                    self._start()
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

    def _forget(self) -> None:
        self._owner, self._lock = os.getpid(), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        if not sys.executable:
            raise ValueError("no Python to start a process with (sys.executable is empty)")
        paths = [str(Path(minillm.__file__).parent.parent), *map(os.path.abspath, sys.path)]
        command = [sys.executable, "-I", "-S", "-c", START, self.service, *paths]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere)
        self._finalizer = weakref.finalize(self, _end, self._process, self._owner)
        try:
            self._exchange((self.setup,), START_SECONDS, self.memory)
        except _Refused:
            self._end()
            raise

    def _end(self) -> None:
        if self._process is not None:
            self._process = None
            self._finalizer()

    def _exchange(self, request: tuple[Any, ...], seconds: float, memory: int) -> Any:
        process: Any = self._process
        with _clock(process, seconds) as clock:
            try:
                write(process.stdin, marshal.dumps((seconds, memory, request)))
                data = read(process.stdout, MAX_ANSWER)
            except (BrokenPipeError, ConnectionResetError):
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


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():  # in a fork, whose parent goes on with it
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not written yet
            pipe.close()  # type: ignore[union-attr]


def write(stream: IO[bytes], data: bytes) -> None:
    """A message: its length in 8 bytes, then itself."""
    stream.write(len(data).to_bytes(8, "big"))
    stream.write(data)
    stream.flush()


def read(stream: IO[bytes], limit: int) -> bytes | None:
    """The next message; None when the other side has gone. Raises ValueError for one of more than `limit` bytes."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    if (size := int.from_bytes(head, "big")) > limit:
        raise ValueError(f"its answer of {size:,} bytes is more than the {limit:,} allowed")
    data = stream.read(size)
    return data if len(data) == size else None
