"""What stands before the tensors of a GGUF file, checked before any of it is used (versions 2 and 3, little endian):

    "GGUF"  u32 version  u64 tensors  u64 pairs
    pairs:    text key, u32 type, value;      a text is u64 bytes and UTF-8, a list u32 type, u64 count, values
    tensors:  text name, u32 axes, u64 size of each axis (the fastest first), u32 type, u64 offset
    values of tensors, from the next multiple of `general.alignment` on, each at such a multiple from there

A model may be cut into files "X-00001-of-00003.gguf": the first has all pairs, each its own tensors. Refused are files
of version 1 (32-bit counts, of 2023) and of big-endian machines, lists in lists, and whatever contradicts itself.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minillm.weights.gguf.kinds import KINDS, REMOVED, Kind
from minillm.weights.source import Source

MAGIC, SUFFIX = b"GGUF", ".gguf"
FIRST_BYTES, MAX_BYTES = 2**24, 2**28  # of all before the values; four times as many are read where they do not do
MAX_PAIRS, MAX_TENSORS = 2**14, 2**17
MAX_KEY, MAX_TEXT, MAX_LIST = 2**10, 2**24, 2**22
MAX_AXES = 4
ALIGNMENT, MAX_ALIGNMENT = 32, 2**16
# Types of values: what struct and numpy call them.
NUMBERS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}
TEXT, LIST = 8, 9
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
WORDS = {"no": "split.no", "count": "split.count", "tensors": "split.tensors.count"}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: `nbytes` from byte `start` on, whose blocks are of a kind; `shape` with the slowest axis
    first, as PyTorch has it."""

    source: Source
    kind: Kind
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Contents:
    """Numbers, texts, and lists as numpy arrays or lists of texts, by key; tensors by name."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    entries: Mapping[str, Entry]
    nbytes: int  # of all files


class _Short(Exception):
    """More bytes are needed than there are."""


def is_one(path: Path) -> bool:
    """Whether a path is a file of this format, by its name."""
    return path.suffix == SUFFIX and path.is_file()


def parts(path: Path) -> list[Path]:
    """All files of a model, given the first; the file itself where it is in one."""
    if not (found := PART.fullmatch(path.name)):
        return [path]
    stem, number, count = found[1], int(found[2]), int(found[3])
    if number != 1:
        raise ValueError(f"{path}: part {number} of {count}; give the first, {stem}-00001-of-{found[3]}.gguf")
    return [path.with_name(f"{stem}-{i + 1:05}-of-{found[3]}.gguf") for i in range(count)]


def read(path: Path) -> Contents:
    """What a file holds, or all parts of one. Raises ValueError for one that is not as it must be."""
    places = parts(path)
    if missing := [each.name for each in places if not each.is_file()]:
        raise ValueError(f"{path}: {missing[0]} and {len(missing) - 1} more of its parts are missing; download them")
    return _read_parts(path, tuple(places), tuple(map(_identity, places)))


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=2)  # a command asks for the config, the vocabulary and the tensors
def _read_parts(path: Path, places: tuple[Path, ...], identities: tuple[tuple[int, ...], ...]) -> Contents:
    metadata, entries, nbytes = dict[str, Any](), dict[str, Entry](), 0
    for number, place in enumerate(places):
        source = Source(place)
        pairs, own = _read(source)
        if len(places) > 1 or WORDS["count"] in pairs:
            _check_part(place, pairs, number, len(places))
        if twice := own.keys() & entries.keys():
            raise ValueError(f"{place}: tensor {min(twice)!r} is in another part too; download them again")
        metadata, nbytes = metadata or pairs, nbytes + source.size
        entries |= own
    stated = metadata.get(WORDS["tensors"], len(entries))
    if type(stated) is not int or stated != len(entries):
        raise ValueError(f"{path}: {len(entries)} tensors, {WORDS['tensors']} says {stated}; download it again")
    return Contents(places, metadata, entries, nbytes)


def _check_part(path: Path, pairs: Mapping[str, Any], number: int, count: int) -> None:
    stated = tuple(each if type(each := pairs.get(WORDS[word])) is int else None for word in ("no", "count"))
    if stated not in ((number, count), (number, None)) and (count > 1 or stated[1] not in (0, 1)):
        raise ValueError(
            f"{path}: it says to be part {stated[0]} (from 0) of {stated[1]}; its name says {number} of {count}"
        )


def _read(source: Source) -> tuple[dict[str, Any], dict[str, Entry]]:
    count = min(source.size, FIRST_BYTES)
    while True:
        try:
            return _Header(source, source.read(0, count)).read()
        except _Short:
            if count == source.size:
                raise damaged(source.path, "it ends before its first tensor") from None
            if count >= MAX_BYTES:
                raise damaged(source.path, f"more than {MAX_BYTES:,} bytes before the tensors") from None
            count = min(source.size, 4 * count)
        except (ValueError, struct.error) as error:
            raise damaged(source.path, str(error)[:200]) from None


def damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path}: damaged or not GGUF ({reason}); download it again")


class _Header:
    """The bytes at the beginning of a file, read from the first on."""

    def __init__(self, source: Source, data: bytes):
        self.source, self.data, self.at = source, data, 0

    def read(self) -> tuple[dict[str, Any], dict[str, Entry]]:
        self._check_version()
        tensors, pairs = self._number("u8"), self._number("u8")
        if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
            raise ValueError(f"{tensors} tensors and {pairs} pairs; the limits are {MAX_TENSORS} and {MAX_PAIRS}")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._text(MAX_KEY)
            if not key or key in metadata:
                raise ValueError(f"the key {key[:80]!r} {'stands there twice' if key else 'is empty'}")
            metadata[key] = self._value(key)
        found: dict[str, tuple[Kind, tuple[int, ...], int]] = {}
        for _ in range(tensors):
            name = self._text(MAX_KEY)
            if not name or name in found:
                raise ValueError(f"tensor {name[:80]!r} {'is there twice' if name else 'has no name'}")
            found[name] = self._tensor(name)
        return metadata, self._placed(found, metadata.get("general.alignment", ALIGNMENT))

    def _check_version(self) -> None:
        if self._take(4) != MAGIC:
            raise ValueError(f"it begins with {self.data[:4]!r} and not {MAGIC!r}")
        version = self._number("u4")
        if version & 0xFFFF == 0 and version:
            raise ValueError("written for big-endian machines, which is not supported: take a little-endian file")
        if version not in (2, 3):
            raise ValueError(f"version {version}; 2 and 3 are read: convert it with a newer llama.cpp")

    def _take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise _Short
        self.at += count
        return self.data[self.at - count : self.at]

    def _number(self, kind: str) -> Any:
        value = np.frombuffer(self._take(np.dtype(kind).itemsize), f"<{kind}")[0].item()
        return value

    def _text(self, limit: int) -> str:
        size = self._number("u8")
        if size > limit:
            raise ValueError(f"a text of {size:,} bytes, more than the {limit:,} allowed")
        return _utf8(self._take(size))

    def _value(self, key: str) -> Any:
        kind = self._number("u4")
        if kind == TEXT:
            return self._text(MAX_TEXT)
        if kind == LIST:
            return self._list(key)
        if kind not in NUMBERS:
            raise ValueError(f"{key} is of type {kind}, which GGUF does not have")
        return _sound(key, kind, self._take(np.dtype(NUMBERS[kind]).itemsize))[0].item()

    def _list(self, key: str) -> Any:
        kind, count = self._number("u4"), self._number("u8")
        if count > MAX_LIST:
            raise ValueError(f"{key} has {count:,} values, more than the {MAX_LIST:,} allowed")
        if kind == TEXT:
            return self._texts(count)
        if kind not in NUMBERS:
            what = "a list of lists, which is not supported" if kind == LIST else f"of type {kind}, which is none"
            raise ValueError(f"{key} is {what}")
        return _sound(key, kind, self._take(count * np.dtype(NUMBERS[kind]).itemsize))

    def _texts(self, count: int) -> list[str]:
        """In one loop: a vocabulary has hundreds of thousands."""
        data, at, end, made, size_at = self.data, self.at, len(self.data), list[str](), struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end:
                raise _Short
            size = size_at(data, at)[0]
            if size > MAX_TEXT:
                raise ValueError(f"a text of {size:,} bytes, more than the {MAX_TEXT:,} allowed")
            if at + 8 + size > end:
                raise _Short
            made.append(_utf8(data[at + 8 : at + 8 + size]))
            at += 8 + size
        self.at = at
        return made

    def _tensor(self, name: str) -> tuple[Kind, tuple[int, ...], int]:
        axes = self._number("u4")
        if not 1 <= axes <= MAX_AXES:
            raise ValueError(f"{name[:80]} has {axes} axes; 1 to {MAX_AXES} are possible")
        shape = struct.unpack(f"<{axes}Q", self._take(8 * axes))
        code, offset = self._number("u4"), self._number("u8")
        if code not in KINDS:
            reason = "which llama.cpp has removed" if code in REMOVED else "which is not known here"
            raise ValueError(f"{name[:80]} is of type {code}, {reason}")
        if not all(shape) or math.prod(shape) >= 2**63:
            raise ValueError(f"{name[:80]} has the sizes {list(shape)}")
        kind = KINDS[code]
        if shape[0] % kind.block:
            raise ValueError(f"{name[:80]} has rows of {shape[0]} values, {kind.name} blocks have {kind.block}")
        return kind, shape[::-1], offset

    def _placed(self, found: Mapping[str, tuple[Kind, tuple[int, ...], int]], unit: Any) -> dict[str, Entry]:
        """Where the tensors lie: inside the file, each by itself."""
        if type(unit) is not int or not 0 < unit <= MAX_ALIGNMENT or unit & (unit - 1):
            raise ValueError(f"general.alignment is {str(unit)[:40]}, expected a power of two")
        base = self.at + -self.at % unit
        made: dict[str, Entry] = {}
        for name, (kind, shape, offset) in found.items():
            nbytes = math.prod(shape) // kind.block * kind.nbytes
            if offset % unit:
                raise ValueError(f"{name[:80]} starts at {offset}, which is no multiple of {unit}")
            if base + offset + nbytes > self.source.size:
                raise ValueError(f"{name[:80]} ends at {base + offset + nbytes}, the file has {self.source.size} bytes")
            made[name] = Entry(self.source, kind, shape, base + offset, nbytes)
        end, before = 0, ""
        for name, entry in sorted(made.items(), key=lambda item: item[1].start):
            if entry.start < end:
                raise ValueError(f"{name[:80]} lies over {before[:80]}")
            end, before = entry.start + entry.nbytes, name
        return made


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the text {data[:40]!r} is not UTF-8") from None


def _sound(key: str, kind: int, data: bytes) -> np.ndarray:
    """Numbers, of which flags may only be 0 and 1."""
    values = np.frombuffer(data, f"<{NUMBERS[kind]}" if kind != 7 else "u1")
    if kind == 7:
        if len(values) and values.max() > 1:
            raise ValueError(f"{key} has a flag that is {values.max()}")
        return values.astype(bool)
    return values
