"""Where compiled loops are kept from run to run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def folder() -> Path | None:
    """`minillm/cpu/` and a name by the content of all loops, as numba itself looks at one file only: below
    NUMBA_CACHE_DIR, XDG_CACHE_HOME or ~/.cache, else in a folder of the user's own among the temporary files. None
    where none of them can be written."""
    sources = sorted((Path(__file__).parent / "loops").glob("*.py"))
    named = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    return next((root / "minillm/cpu" / named for root in _roots() if _is_ours(root, "minillm", "cpu", named)), None)


def _roots() -> Iterator[Path]:
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        yield Path(given)
    else:
        with contextlib.suppress(RuntimeError):  # nobody knows of a home
            yield Path.home() / ".cache"
    with contextlib.suppress(OSError):
        own = Path(tempfile.gettempdir()) / f"minillm-{_user()}"
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        private = found.st_uid == _user() and not found.st_mode & 0o077  # as no link's mode is
        if private or os.name == "nt":  # where the whole folder is the user's
            yield own


def _is_ours(place: Path, *inner: str) -> bool:
    """Whether folders can be made in a place, each in the one before, and none is somebody else's or open to all: what
    lies in them is run."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in inner:
            place = place / name
            place.mkdir(mode=0o700, exist_ok=True)
            found = place.lstat()
            if found.st_uid != _user() or (found.st_mode & 0o002 and os.name != "nt"):
                return False
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0  # as Windows says of every file
