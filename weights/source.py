"""A weight file that is opened once, and tensors that stay in it until they are asked for.

What is checked of a file is what is read of it, whatever becomes of its name meanwhile: reads go through one
descriptor, and each looks afterwards whether the file is still as it was. Nothing is mapped, as pages of a file that
somebody cuts short end the process.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import math
import os
import re
import stat
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from minillm.guard.files import KINDS

CHUNK_BYTES = 4 * 2**20  # that one thread reads at a time
THREADS = 4
APART, MOST_EXPERTS = re.compile(r"(.*\.)((?:gate|up)_proj\.weight)"), 65536
BELOW, ROUTER = re.compile(r"(.*\.)(experts\.mlp\.)(w1|v1|w2)"), "router.layer.weight"
SEEKING = threading.Lock()  # where a system can only read from where a descriptor stands

# What safetensors calls the types.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Source:
    """A file to be read at any place, by several threads. With `keep` it stays open as long as this object lives, else
    it is opened for each read and refused when it is another one by then.

    Raises ValueError for what is no file, here and when it is read, for one that has changed.
    """

    def __init__(self, path: Path, keep: bool = True):
        self.path, self._kept = path, None
        self.metadata: dict[str, str] = {}  # what its header says beside the tensors
        descriptor = self._open()
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{path}: {KINDS.get(stat.S_IFMT(found.st_mode), 'no plain file')}, expected a file")
        except BaseException:
            os.close(descriptor)
            raise
        self.size, self._identity = found.st_size, _identity(found)
        if keep:
            self._kept = descriptor
            weakref.finalize(self, os.close, descriptor)
        else:
            os.close(descriptor)

    def _open(self) -> int:
        # A pipe or a device must not hold the program up before it is known to be one.
        return os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        if self._kept is not None:
            yield self._kept
            return
        descriptor = self._open()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read_into(self, memory: memoryview, at: int) -> None:
        """Fill memory with the bytes from `at` on."""
        with self._opened() as descriptor:
            while memory:
                count = _read(descriptor, memory, at)
                if not count:
                    raise ValueError(f"{self.path}: damaged (it ends too early); download it again")
                memory, at = memory[count:], at + count
            if _identity(os.fstat(descriptor)) != self._identity:
                raise ValueError(f"{self.path}: it changed while it was read; try again when it is complete")

    def read(self, at: int, count: int) -> bytes:
        made = bytearray(count)
        self.read_into(memoryview(made), at)
        return bytes(made)

    def fill(self, into: Tensor, at: int, summed: bool = False) -> list[tuple[int, int]]:
        """Read into a contiguous tensor on the CPU, in pieces by several threads: the bytes of each piece, and its
        CRC-32 if `summed`."""
        assert (into.device.type, into.is_contiguous()) == ("cpu", True)
        if not into.nbytes:
            return []
        memory = memoryview((ctypes.c_char * into.nbytes).from_address(into.data_ptr())).cast("B")
        chunks = range(0, into.nbytes, CHUNK_BYTES)

        def read(chunk: int) -> tuple[int, int]:
            piece = memory[chunk : chunk + CHUNK_BYTES]
            self.read_into(piece, at + chunk)
            return len(piece), zlib.crc32(piece) if summed else 0

        if len(chunks) == 1:
            return [read(0)]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(read, chunks))


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(descriptor: int, memory: memoryview, at: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [memory], at)
    with SEEKING:
        os.lseek(descriptor, at, os.SEEK_SET)
        data = os.read(descriptor, len(memory))
    memory[: len(data)] = data
    return len(data)


@dataclass(frozen=True)
class InFile:
    """A tensor that lies in a file as one row of values, from byte `start` on; `word` is its type in the words of
    safetensors."""

    source: Source
    word: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.word]

    def fresh(self) -> InFile:
        """The same tensor, nothing of which has been read."""
        return self

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Values start … stop - 1."""
        stop = math.prod(self.shape) if stop is None else stop
        made = torch.empty(stop - start, dtype=self.dtype, device="cpu")
        self.fill(made, start)
        return made

    def fill(self, into: Tensor, start: int = 0) -> None:
        """Read into a contiguous tensor of this type on the CPU, which says how many values from `start` on."""
        assert into.dtype == self.dtype
        self.source.fill(into, self.start + start * into.element_size())


@dataclass(frozen=True)
class Within:
    """A tensor of a file, by name and shape, and the number of the value that one of its matrices begins with."""

    name: str
    shape: tuple[int, ...]
    start: int


def unstacked(name: str, stored: object, others: Mapping[str, object]) -> Iterator[tuple[str, InFile]]:
    """Of a tensor that has a matrix of each expert of a layer, these one by one: a model has gate and up of an expert
    side by side. Either X.gate_proj.weight or X.up_proj.weight is a stack of them, `[E, F, H]`, and gives
    X.E.gate_proj.weight; or they lie one below the other in X.experts.mlp.w1, v1 or w2 `[E F, H]`, as many as
    X.router.layer.weight has rows, and give X.experts.mlp.E.w1. Nothing of any other tensor."""
    if not isinstance(stored, InFile):
        return
    if len(stored.shape) == 3 and (named := APART.fullmatch(name)):
        (count, *shape), before, ending = stored.shape, *named.groups()
    elif len(stored.shape) == 2 and (named := BELOW.fullmatch(name)):
        router, (rows, width) = others.get(named[1] + ROUTER), stored.shape
        count = router.shape[0] if isinstance(router, InFile) and router.shape else 0
        if not count or rows % count:
            return
        shape, before, ending = [rows // count, width], named[1] + named[2], named[3]
    else:
        return
    size = stored.nbytes // max(count, 1)
    for e in range(count if count <= MOST_EXPERTS else 0):
        yield f"{before}{e}.{ending}", replace(stored, shape=tuple(shape), start=stored.start + e * size, nbytes=size)


class Kept(abc.ABC):
    """A tensor that is made when it is asked for, as none lies in a file as it is wanted, and then kept."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: Tensor | None = None

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Values start … stop - 1 of all in a row."""
        with self.lock:
            if self.kept is None:
                self.kept = self._read()
        return self.kept[start:stop]

    @abc.abstractmethod
    def _read(self) -> Tensor:
        """All values in a row."""
