"""The safetensors format: the length of a header in 8 bytes, the header in JSON, and the values of all tensors.

    {"name": {"dtype": "BF16", "shape": [M, N], "data_offsets": [begin, end]}, …, "__metadata__": {…}}

Offsets count from the end of the header, and the tensors must cover what follows it without gaps: a file that says
otherwise is refused before anything of it is read. Values are read straight into the memory that they are wanted in,
by several threads; a mapped file would count twice, as its pages and as their copy.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_HEADER_BYTES, MAX_DIMENSIONS = 100_000_000, 64
CHUNK_BYTES = 4 * 2**20  # that one thread reads at a time
THREADS = 4

# What the format calls the types, and the bits of a value.
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64, "BOOL": 8, "U16": 16, "U32": 32, "U64": 64, "F8_E8M0": 8}
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
BITS |= {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a file; `dtype` in the words of the format, `start` in bytes from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class InFile:
    """A tensor that is read when it is asked for, as one row of values."""

    path: Path
    entry: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.entry.dtype]

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Values start … stop - 1."""
        stop = math.prod(self.shape) if stop is None else stop
        made = torch.empty(stop - start, dtype=self.dtype, device="cpu")
        self.fill(made, start)
        return made

    def fill(self, into: Tensor, start: int = 0) -> None:
        """Read into a contiguous tensor of this type on the CPU, which says how many values from `start` on."""
        assert (into.dtype, into.device.type, into.is_contiguous()) == (self.dtype, "cpu", True)
        if not into.nbytes:
            return
        memory = memoryview((ctypes.c_char * into.nbytes).from_address(into.data_ptr())).cast("B")
        at = self.entry.start + start * into.element_size()
        chunks = range(0, into.nbytes, CHUNK_BYTES)

        def read(chunk: int) -> None:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(at + chunk)
                rest = memory[chunk : chunk + CHUNK_BYTES]
                while rest:
                    count = file.readinto(rest)
                    if not count:
                        raise damaged(self.path, "it ends too early")
                    rest = rest[count:]

        if len(chunks) == 1:
            return read(0)
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(read, chunks):
                pass


def damaged(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path}: damaged or not safetensors ({reason}); download it again")


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file, in the order of their values. Raises ValueError for a file that is not as it must be."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise damaged(path, f"a header of {length} bytes in a file of {size}, the limit being {MAX_HEADER_BYTES}")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        found = {str(name): _entry(each, 8 + length) for name, each in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"header: {type(error).__name__} {str(error)[:80]}") from None
    found = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)))
    end = 8 + length
    for name, entry in found.items():
        if entry.start != end:
            raise damaged(path, f"the values of {name[:80]!r} start at {entry.start} and not at {end}")
        end += entry.nbytes
    if end != size:
        raise damaged(path, f"its header speaks of {end} bytes, it has {size}")
    return found


def _entry(given: Any, base: int) -> Entry:
    dtype, shape, (begin, end) = given["dtype"], given["shape"], given["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"type {str(dtype)[:20]}")
    sizes = (*shape, begin, end)
    if len(shape) > MAX_DIMENSIONS or any(type(each) is not int or not 0 <= each < 2**63 for each in sizes):
        raise ValueError("sizes and offsets must be whole numbers below 2^63, and dimensions few")
    if math.prod(shape) * BITS[dtype] != 8 * (end - begin):
        raise ValueError(f"{dtype} {shape} takes other than {end - begin} bytes")
    return Entry(dtype, tuple(shape), base + begin, end - begin)


class Writer:
    """A file whose tensors are known by type and shape beforehand and come in any order and in pieces; complete or not
    at all: it gets its name when the `with` block ends well.

    `entries` has the type in the words of the format and the shape of each tensor.
    """

    def __init__(self, path: Path, entries: Mapping[str, tuple[str, Sequence[int]]]):
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        # Types of wide values first: every tensor then begins at a multiple of its values' size.
        ordered = sorted(entries.items(), key=lambda item: -BITS[item[1][0]])
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in ordered:
            begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        base = 8 + len(text)
        self.places = {name: (base + header[name]["data_offsets"][0], entries[name][0]) for name in entries}
        self.nbytes = base + end
        self.head = len(text).to_bytes(8, "little") + text

    def __enter__(self) -> Writer:
        self.file = open(self.partial, "wb")
        self.file.write(self.head)
        self.file.truncate(self.nbytes)
        return self

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Values of a tensor from its value `start` on."""
        begin, dtype = self.places[name]
        assert NAMES[values.dtype] == dtype, (name, values.dtype, dtype)
        self.file.seek(begin + start * values.element_size())
        if values.numel():
            self.file.write(values.contiguous().cpu().flatten().view(torch.uint8).numpy().data)

    def __exit__(self, *error: object) -> None:
        self.file.close()
        if error[0] is None:
            os.replace(self.partial, self.path)
        else:
            self.partial.unlink()


def blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """start and stop of stretches of `size` that make up `count`."""
    return ((start, min(start + size, count)) for start in range(0, count, size))
