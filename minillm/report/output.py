"""A file that a flag asks for: refused before any work where it could not be written, and complete or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def check(flag: str, path: Path, what: str, suffix: str) -> None:
    """`what` is the kind of file, such as "a picture". Raises ValueError for another suffix, for a folder that is not
    there, and for a place that cannot be written or holds no file, but a folder or a pipe."""
    if path.suffix != suffix:
        raise ValueError(f"{flag} {path}: {what} is a {suffix} file")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}")
    taken = path.exists() and not stat.S_ISREG(path.stat().st_mode)
    if taken or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{flag} {path}: cannot be written; give the path of a file to be")


@contextlib.contextmanager
def complete(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path`, unless there is an error: then nothing has changed."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    file = open(temporary, "xb")  # noqa: SIM115  (new, and no link, in a folder where others may write)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # which would hide the cause
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
