"""A file that a flag asks for: refused before any work where it could not be written, and complete or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def check(flag: str, path: Path, what: str, suffix: str) -> None:
    """`what` is the kind of file, such as "a picture". Raises ValueError for another suffix, for a folder that is not
    there, and for a place that cannot be written."""
    if path.suffix != suffix:
        raise ValueError(f"{flag} {path}: {what} is a {suffix} file")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{flag} {path}: cannot be written; give the path of a file to be")


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place unless there is an error."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
