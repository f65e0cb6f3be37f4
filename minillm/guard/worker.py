"""The other side of `child.py`: what runs in the process that has limits."""

from __future__ import annotations

import contextlib
import importlib
import json
import marshal
import os
import signal
import sys
from typing import NoReturn

from minillm.guard.pipe import read, write

MAX_WORDS = 1000  # characters of an error
SPARE_SECONDS = 5  # of processor time: the parent's clock comes first, if there still is a parent


def serve(service: str) -> NoReturn:
    """Say that it is there, and answer until nobody asks any more. The first request prepares the service."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    module = importlib.import_module(service)
    answer, own = module.prepare, _address_space()
    write(sys.stdout.buffer, b"")
    while (data := read(sys.stdin.buffer, sys.maxsize)) is not None:
        seconds, memory, request = marshal.loads(data)
        del data
        _limit(seconds, own + memory if own else None)
        try:
            reply = {"value": answer(*request)}
        except MemoryError:
            os._exit(1)  # what is left of the heap is no place for the next
        except BaseException as error:
            reply = {"refused": words(error)}
        else:
            answer = module.answer
        write(sys.stdout.buffer, json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    os._exit(0)


def words(error: BaseException) -> str:
    """What an exception says, bounded."""
    said = str(error) or type(error).__name__
    return said if len(said) <= MAX_WORDS else f"{said[:MAX_WORDS]} … ({len(said):,} characters)"


def _address_space() -> int | None:
    """Bytes of it in use; None where the system does not say or does not limit it."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no file of what was in memory
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None


def _limit(seconds: float, memory: int | None) -> None:
    """Limits of this process until the next request. That of processor time is for a loop whose parent, who has the
    clock, was killed."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows, or lower limits already
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime + seconds) + SPARE_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
