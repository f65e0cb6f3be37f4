"""A file that a flag asks for: refused before any work where it could not be written."""

from __future__ import annotations

import os
import stat
from pathlib import Path


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
