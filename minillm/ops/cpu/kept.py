"""Where compiled loops are kept from run to run: a convenience, which nothing fails for.

What is kept is machine code in a pickle, so whoever can write it can run anything as this user. It is taken from
folders and files that this user alone can write, whole by their digests, and made of the very sources that are here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import llvmlite
import numba
import numpy as np

MAX_BYTES = 100_000_000  # of a loop, which has a hundred thousand
DIGEST = hashlib.sha256().digest_size
LEFT = 3600  # seconds after which a file that is not whole is nobody's work any more
NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# Settings of numba that change no machine code.
IDLE = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY")


def folder() -> Path | None:
    """`minillm/cpu/` of the cache and a name by all that decides what the loops compile to, but for the processor."""
    try:
        loops = sorted((Path(__file__).parent / "loops").rglob("*.py"))
        sources = [(path.name, path.read_bytes()) for path in loops]
    except OSError:
        return None
    settings = sorted(each for each in os.environ.items() if each[0].startswith("NUMBA_") and each[0] not in IDLE)
    made_by = sys.version, numba.__version__, llvmlite.__version__, np.__version__, settings
    named = hashlib.sha256(repr((made_by, sources)).encode()).hexdigest()[:16]
    return cache("cpu", named) if sources else None


def cache(*inner: str) -> Path | None:
    """`minillm/` and folders in it: below NUMBA_CACHE_DIR, XDG_CACHE_HOME or ~/.cache, else in a folder of the user's
    own among the temporary files. None where none of them can be written, or others may."""
    roots = (root for root in _roots() if root.is_absolute())  # another is for nobody to say (XDG)
    return next((made for root in roots if (made := _ours(root, "minillm", *inner))), None)


def read(path: Path) -> bytes | None:
    """What was kept under a name; None where that is nothing, not whole, or not by this user alone."""
    try:
        with open(os.open(path, os.O_RDONLY | NOT_FOLLOWED), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or not _is_own(found) or found.st_size > MAX_BYTES:
                return None
            digest, data = file.read(DIGEST), file.read()
    except OSError:
        return None
    return data if digest == _digest(path, data) else None


def write(path: Path, data: bytes) -> None:
    """Keep something under a name: all of it or nothing, whoever else does the same. Raises OSError."""
    for left in path.parent.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.lstat().st_mtime > LEFT:
                left.unlink()
    temporary = path.with_name(f"{secrets.token_hex(8)}.part")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOT_FOLLOWED, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(_digest(path, data) + data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # which would hide the cause
            temporary.unlink()
        raise


def _digest(path: Path, data: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + data).digest()


def _roots() -> Iterator[Path]:
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given)
    if (given := os.environ.get("XDG_CACHE_HOME")) and Path(given).is_absolute():
        yield Path(given)
    else:
        with contextlib.suppress(RuntimeError):  # nobody knows of a home
            yield Path.home() / ".cache"
    with contextlib.suppress(OSError):
        place = Path(tempfile.gettempdir())
        if place == Path.cwd():  # for want of any other; a checkpoint may have been unpacked here
            return
        own = place / f"minillm-{_user()}"
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        private = _is_own(found) and not found.st_mode & 0o077  # as no link's mode is
        if private or os.name == "nt":  # where the whole folder is the user's
            yield own


def _ours(root: Path, *inner: str) -> Path | None:
    """Folders in a place, each in the one before, made where they are not; None where they cannot be, or where others
    could put something in their stead."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = root.resolve()
        if any(_is_open(each) for each in (place, *place.parents)):
            return None
        for name in inner:
            place = place / name
            place.mkdir(mode=0o700, exist_ok=True)
            if not _is_own(place.lstat()):
                return None
        with tempfile.TemporaryFile(dir=place):
            return place
    except (OSError, RuntimeError):  # or links in a circle
        return None


def _is_open(place: Path) -> bool:
    """Whether anybody may rename what lies in a folder. In one with the sticky bit nobody can but its owner."""
    mode = place.stat().st_mode
    return os.name != "nt" and bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _is_own(found: os.stat_result) -> bool:
    """Whether nobody but this user can have written it."""
    return os.name == "nt" or (found.st_uid == _user() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0  # as Windows says of every file
