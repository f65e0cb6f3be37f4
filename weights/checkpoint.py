"""A checkpoint folder in Hugging Face layout: which files hold which tensors, and the tensors one by one.

    model.safetensors  or  model.safetensors.index.json with its shards
    pytorch_model.bin  or  pytorch_model.bin.index.json with its shards

Only these names count: a folder may hold other safetensors (adapters, another layout) that are not part of the model.
Safetensors are read piece by piece into the memory that wants them (`tensorfile.py`). `.bin` files are memory-mapped,
and the pages of a tensor are given back once it has been copied, so that reading them takes no more memory than their
largest tensor; they are read with `weights_only=True`, which refuses to execute anything.
"""

from __future__ import annotations

import collections
import ctypes
import json
import math
import mmap
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.weights import tensorfile
from minillm.weights.tensorfile import InFile

EQUAL_VALUES = 2**20  # compared at a time
MAX_INDEX_BYTES = 100_000_000  # the limit that safetensors sets its own headers

# What safetensors calls the types that this project can hold in a model.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it; `dtype` in the words of safetensors ("BF16", "F8_E4M3", …)."""

    file: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class InMemory:
    """A tensor of a mapped `.bin` file, with the methods of `tensorfile.InFile`."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.tensor.flatten()[start:stop]

    def fill(self, into: Tensor, start: int = 0) -> None:
        into.copy_(self.values(start, start + into.numel()).view(into.shape))


Stored = InFile | InMemory


def find(folder: Path) -> tuple[list[str], dict[str, str] | None] | None:
    """The weight files of a folder, and from its index which tensor is in which (None without an index).

    Returns None when the folder has no weights at all. Raises ValueError for an index that cannot be trusted.
    """
    path = entry(folder)
    if path is None:
        return None
    if path.suffix != ".json":
        return [path.name], None
    located = read_index(path)
    return sorted(set(located.values())), located


def entry(folder: Path) -> Path | None:
    """What a folder's weights begin with: their only file, or the index of their shards. None without any."""
    stems = ("model.safetensors", "pytorch_model.bin")
    places = (folder / f"{stem}{ending}" for stem in stems for ending in ("", ".index.json"))
    return next((path for path in places if path.is_file()), None)


def read_index(path: Path) -> dict[str, str]:
    """The `weight_map` of an index file: tensor name -> file name, each file inside the index's own folder."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_INDEX_BYTES} an index may have")
    try:
        located = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        entries = [(str(name), str(file)) for name, file in located.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path}: not an index: expected JSON with a 'weight_map' object; download it again") from None
    for name, file in entries:
        if "/" in file or "\\" in file or "\0" in file or file in ("", ".", ".."):
            raise ValueError(f"{path}: tensor {name!r} points to {file!r}, which is not a plain name in this folder")
    return dict(entries)


class Checkpoint:
    """The tensors of a folder: `info` has what the headers say, `read` goes through the data file by file.

    Raises ValueError when there are no weights, a file is missing or damaged, or a file lacks what the index promises.
    """

    def __init__(self, folder: Path):
        found = find(folder)
        if found is None:
            raise ValueError(
                f"{folder}: no weights found; expected model.safetensors, pytorch_model.bin, "
                "or an index (*.index.json) with its shards"
            )
        self.folder = folder
        self.files, located = found
        missing = [file for file in self.files if not (folder / file).is_file()]
        if missing:
            raise ValueError(f"{folder}: the index names files that are not there: {brief(missing)}; download them")
        self.info: dict[str, TensorInfo] = {}
        for file in self.files:
            for name, info in _headers(folder / file).items():
                if name in self.info:
                    raise ValueError(f"{folder}: tensor {name!r} is in both {self.info[name].file} and {file}")
                self.info[name] = info
        absent = [name for name, file in (located or {}).items() if self.info.get(name, _NOWHERE).file != file]
        if absent:
            raise ValueError(f"{folder}: the index promises tensors that their files lack: {brief(absent)}")
        self.nbytes = sum((folder / file).stat().st_size for file in self.files)

    @property
    def dtype(self) -> torch.dtype | None:
        """The type that most of the values are stored in, quantised ones aside; None if there are no others."""
        values = collections.Counter[str]()
        for info in self.info.values():
            if info.dtype in DTYPES:
                values[info.dtype] += math.prod(info.shape)
        return DTYPES[values.most_common(1)[0][0]] if values else None

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors are the same in type, shape and every value, and so are those that go with them under
        their names and an ending, as factors do."""
        endings = [
            [name.removeprefix(tensor) for name in self.info if name.startswith(tensor)] for tensor in (one, other)
        ]
        if sorted(endings[0]) != sorted(endings[1]):
            return False
        return all(self._equal(f"{one}{ending}", f"{other}{ending}") for ending in endings[0])

    def _equal(self, one: str, other: str) -> bool:
        first, second = self.info[one], self.info[other]
        if (first.shape, first.dtype) != (second.shape, second.dtype):
            return False
        a, b = self._stored(one), self._stored(other)
        size = math.prod(first.shape)
        places = (slice(*place) for place in tensorfile.blocks(size, EQUAL_VALUES))
        return all(torch.equal(a.values(at.start, at.stop), b.values(at.start, at.stop)) for at in places)

    def _stored(self, name: str) -> Stored:
        path = self.folder / self.info[name].file
        if path.suffix == ".bin":
            return InMemory(_load_bin(path)[0][name].contiguous())
        return InFile(path, tensorfile.read_header(path)[name])

    def read(self, wanted: Callable[[str], bool], done: Callable[[int], None]) -> Iterator[tuple[str, Stored]]:
        """Yield (name, tensor) of each wanted tensor, in the order of their values, to be read before the next is asked
        for; `done` gets its bytes then."""
        for file in self.files:
            path = self.folder / file
            if path.suffix != ".bin":
                for name, entry in tensorfile.read_header(path).items():
                    if wanted(name):
                        yield name, InFile(path, entry)
                        done(entry.nbytes)
                continue
            tensors, mapped = _load_bin(path)
            for name in filter(wanted, tensors):
                yield name, InMemory(tensors[name].contiguous())
                if mapped:
                    _release_pages(tensors[name])
                done(tensors[name].nbytes)


_NOWHERE = TensorInfo("", (), "")


def brief(names: list[str], limit: int = 6) -> str:
    """The first few names and the number of the others, for one line of an error."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _headers(path: Path) -> dict[str, TensorInfo]:
    if path.suffix == ".bin":
        words = tensorfile.NAMES
        tensors, _ = _load_bin(path)
        return {n: TensorInfo(path.name, tuple(t.shape), words.get(t.dtype, str(t.dtype))) for n, t in tensors.items()}
    return {n: TensorInfo(path.name, e.shape, e.dtype) for n, e in tensorfile.read_header(path).items()}


def _load_bin(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a `.bin` file, and whether they are mapped: files from before PyTorch 1.6 are no zip archives."""
    try:
        mapped = zipfile.is_zipfile(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can make its reader fail in any way
        reason = str(error).split("\n")[0][:120]
        raise ValueError(f"{path}: not a plain file of tensors, or damaged ({reason}); prefer safetensors") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: expected a dictionary of tensors, but {name!r} is a {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{path}: tensor {name!r} is not a plain one; save it again as safetensors")
        # A view that repeats its storage could claim any size.
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: tensor {name!r} repeats its values; save it again as safetensors")
    return content, mapped


def _release_pages(tensor: Tensor) -> None:
    """Give the whole pages under a mapped tensor back to the system, which would read them from the file again.

    Where the system has no such call the only loss is memory until the file is closed.
    """
    if not sys.platform.startswith("linux"):
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
