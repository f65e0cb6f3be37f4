"""Files that are complete or not there, whatever ends the program meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn


@contextlib.contextmanager
def complete(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path`, unless there is an error: then nothing has changed."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    file = open(temporary, "xb")  # noqa: SIM115  (new, and no link, in a folder where others may write)
    try:
        with file:
            yield file
            sync(file)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # which would hide the cause
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def sync(file: BinaryIO) -> None:
    """To the disk: else a name could be there after a power failure, and what it names not."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The names in a folder, where a system lets it be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path`, which must not be there, unless there is an error: then neither it nor
    folders made for it are left. Its name is `path`'s and ends in ".partial", should the process be killed."""
    made = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    above = [each for each in made.parents if not each.exists()]
    try:
        made.mkdir(parents=True)
        with terminable():
            yield made
            sync_folder(made)
            if os.path.lexists(path):
                raise ValueError(f"{path}: is there by now; choose another place")
            made.rename(path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # which would hide the cause; and not by `rmtree`, which opens more files
            for name in os.listdir(made):
                os.unlink(made / name)
        for each in (made, *above):
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A request to end (kill, a closed terminal) raises SystemExit, so that what is half done is cleared away."""

    def end(number: int, frame: Any) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that is no longer empty once Ctrl-C or a request to end has come; a second one ends at once."""
    asked: list[int] = []

    def heard(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {each: signal.signal(each, heard) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
