"""The safetensors format: the length of a header in 8 bytes, the header in JSON, and the values of all tensors.

    {"name": {"dtype": "BF16", "shape": [M, N], "data_offsets": [begin, end]}, …, "__metadata__": {…}}

Offsets count from the end of the header, and the tensors must cover what follows it without gaps. A file that says
otherwise, or that the published library would refuse, is refused before anything of it is read. Values are read
straight into the memory that they are wanted in, by several threads (`source.py`); a mapped file would count twice, as
its pages and as their copy.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from minillm.guard.files import utf8
from minillm.guard.jsonfile import parsed
from minillm.guard.writing import complete
from minillm.weights.source import DTYPES, NAMES, InFile, Source

MAX_HEADER_BYTES, MAX_DIMENSIONS = 32_000_000, 64

# The bits of a value of each type.
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, **{name: 8 * dtype.itemsize for name, dtype in DTYPES.items()}}
KEYS = dict.fromkeys(("dtype", "shape", "data_offsets")).keys()


def damaged(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path}: damaged or not safetensors ({reason}); download it again")


def read_header(source: Source) -> dict[str, InFile]:
    """The tensors of a file, in the order of their values. Raises ValueError for a file that is not as it must be."""
    path, size = source.path, source.size
    length = int.from_bytes(source.read(0, min(8, size)), "little")
    if size < 8 or not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
        raise damaged(path, f"a header of {length} bytes in a file of {size}, the limit being {MAX_HEADER_BYTES}")
    try:
        entries, source.metadata = _entries(source.read(8, length))
        found = {name: _entry(source, each, 8 + length) for name, each in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def _entries(data: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The header without its metadata, and these, which may only be texts."""
    if not data.startswith(b"{"):
        raise ValueError("it begins with no {")
    header = parsed(utf8(data, "it"), "it")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not all(isinstance(each, str) for each in metadata.values()):
        raise ValueError("metadata that is no map of texts")
    return dict(header), metadata or {}


def _entry(source: Source, given: Any, base: int) -> InFile:
    if given.keys() != KEYS:
        raise ValueError(f"a tensor must have {', '.join(KEYS)} and nothing else")
    dtype, shape, offsets = (given[key] for key in KEYS)
    if dtype not in BITS:
        raise ValueError(f"type {str(dtype)[:20]}")
    if type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise ValueError("a shape or offsets that are none")
    begin, end = offsets
    sizes = (*shape, begin, end)
    if len(shape) > MAX_DIMENSIONS or any(type(each) is not int or not 0 <= each < 2**63 for each in sizes):
        raise ValueError("sizes and offsets must be whole numbers below 2^63, and dimensions few")
    if any(product >= 2**64 for product in itertools.accumulate(shape, operator.mul)):
        raise ValueError(f"{shape} has more values than can be counted")
    if math.prod(shape) * BITS[dtype] != 8 * (end - begin):
        raise ValueError(f"{dtype} {shape} takes other than {end - begin} bytes")
    return InFile(source, dtype, tuple(shape), base + begin, end - begin)


class Writer:
    """A file whose tensors are known by type and shape beforehand and come in any order and in pieces; complete or not
    at all: it gets its name when the `with` block ends well.

    `entries` has the type in the words of the format and the shape of each tensor; `metadata` texts that go with them.
    """

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, tuple[str, Sequence[int]]],
        metadata: Mapping[str, str] = MappingProxyType({}),
    ):
        self.path = path
        # Types of wide values first: every tensor then begins at a multiple of its values' size.
        ordered = sorted(entries.items(), key=lambda item: -BITS[item[1][0]])
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
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
        with contextlib.ExitStack() as stack:
            self.file = stack.enter_context(complete(self.path))
            self.file.write(self.head)
            self.file.truncate(self.nbytes)
            self.opened = stack.pop_all()
        return self

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Values of a tensor from its value `start` on."""
        begin, dtype = self.places[name]
        assert NAMES[values.dtype] == dtype, (name, values.dtype, dtype)
        self.file.seek(begin + start * values.element_size())
        if values.numel():
            self.file.write(values.contiguous().cpu().flatten().view(torch.uint8).numpy().data)

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)


def blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """start and stop of stretches of `size` that make up `count`."""
    return ((start, min(start + size, count)) for start in range(0, count, size))
