"""Text from files and pipes: UTF-8, of bounded size, from what is a file.

A file that holds what others are may be mounted: it is a folder then, whose files are made when they are read.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

MAX_TEXT_BYTES = 100_000_000
KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip
_mounted: dict[Path, Mapping[str, Callable[[], bytes]]] = {}


def mount(path: Path, files: Mapping[str, Callable[[], bytes]]) -> None:
    """Let a path be a folder with these files, for all that is read by the functions here."""
    _mounted[path] = files


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, a mounted one or any other."""
    return path in _mounted or path.is_dir()


def is_there(path: Path) -> bool:
    """Whether there is such a file. Raises ValueError where the name belongs to a folder, a pipe or a device: that is
    not the same as no file."""
    if path.name in _mounted.get(path.parent, ()):
        return True
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: {KINDS.get(stat.S_IFMT(mode), 'no plain file')}, expected a file; remove it")
    return True


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES, pipe: bool = False) -> bytes:
    """What a file holds; with `pipe` what comes through a named pipe too. Raises ValueError when it is longer than
    `limit` bytes, or neither of the two."""
    if make := _mounted.get(path.parent, {}).get(path.name):
        return make()
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or (pipe and stat.S_ISFIFO(mode))):  # before it is opened, which alone may block
        raise ValueError(f"{path}: {KINDS.get(stat.S_IFMT(mode), 'no plain file')}, expected a file")
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            return read_stream(file, str(path), limit)
        if found.st_size > limit:
            raise ValueError(f"{path}: {found.st_size:,} bytes, more than the {limit:,} such a file may have")
        return file.read(found.st_size)  # and no more: a file of a kernel can say 0 and go on forever


def read_head(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file, or all that it has."""
    if make := _mounted.get(path.parent, {}).get(path.name):
        return make()[:count]
    with open(path, "rb") as file:
        return file.read(count)


def read_stream(stream: BinaryIO, source: str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """What a pipe gives until it ends. Raises ValueError when it does not within `limit` bytes."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{source}: more than the {limit:,} bytes that are read; give less text")
    return data


def read_line(stream: BinaryIO, source: str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The next line of a pipe, empty at its end. Raises ValueError for one of more than `limit` bytes."""
    data = stream.readline(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{source}: a line of more than {limit:,} bytes; give shorter ones")
    return data


def read_stdin() -> str:
    """The UTF-8 text that is piped in. Raises ValueError as `read_stream` and `utf8` do."""
    return utf8(read_stream(sys.stdin.buffer, "stdin"), "stdin")


def read_text(path: Path, limit: int = MAX_TEXT_BYTES, pipe: bool = False) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises ValueError when it is too large or is anything else."""
    return utf8(read_bytes(path, limit, pipe), str(path)).removeprefix("\ufeff")


def text_file(flag: str, path: str) -> Path:
    """The file that a flag names. Raises ValueError where there is none."""
    if not Path(path).is_file():
        raise ValueError(f"{flag} {path}: no such file; give a text file")
    return Path(path)


def utf8(data: bytes, source: str) -> str:
    """Bytes as text. Raises ValueError that names the first byte which is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise ValueError(
            f"{source}: byte 0x{byte:02x} at offset {error.start} is not UTF-8; convert the text first"
        ) from None
