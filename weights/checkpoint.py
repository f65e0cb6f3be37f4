"""A checkpoint folder in Hugging Face layout: which files hold which tensors, and the tensors one by one.

    model.safetensors  or  model.safetensors.index.json with its shards
    pytorch_model.bin  or  pytorch_model.bin.index.json with its shards

or a makers' own layout (`consolidated.py`), or a GGUF file, or the first part of one, in the place of a folder
(`gguf/`).

Only these names count: a folder may hold other safetensors (adapters, another layout) that are not part of the model.
Each file is opened once and its header is read once. Safetensors (`tensorfile.py`) are read piece by piece into the
memory that wants them, and so are tensors of `.bin` files (`torchfile.py`) that lie there as they are wanted; others
take no more memory than the largest of them.

Files may be links, wherever these lead: the hub's cache consists of links, and large files lie on large disks.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from minillm.guard.files import is_there, read_bytes, utf8
from minillm.guard.jsonfile import MAX_BYTES, parsed
from minillm.weights import consolidated, formats, tensorfile
from minillm.weights.consolidated import Joined
from minillm.weights.formats.packed import METADATA, Made, Section, Seen
from minillm.weights.gguf import reader as gguf
from minillm.weights.gguf.tensors import InBlocks, tensors
from minillm.weights.pytorch import torchfile
from minillm.weights.pytorch.torchfile import InStorage
from minillm.weights.rules import Destination, Plan, Rules, plan
from minillm.weights.source import InFile, Source, Within, unstacked

EQUAL_VALUES = 2**20  # compared at a time
MOST_MATRICES = 2**19  # a byte of a file may be a matrix, which takes hundreds in memory
MAX_OPEN = 64  # files: of more, each is opened when it is read, as a process may have only a few hundred

# What safetensors calls the types that this project can hold in a model.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it; `dtype` in the words of safetensors ("BF16", "F8_E4M3", …)."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    format: str | None = None  # of a matrix that several tensors (`formats/`) or blocks (`gguf/`) hold
    nbytes: int | None = None  # in the file, of such a matrix


Stored = InFile | InStorage | InBlocks | Made | Joined


def find(folder: Path) -> tuple[list[str], dict[str, str] | None] | None:
    """The weight files of a folder, and from its index which tensor is in which (None without an index).

    Returns None when the folder has no weights at all. Raises ValueError for an index that cannot be trusted.
    """
    if gguf.is_one(folder):
        return [path.name for path in gguf.parts(folder)], None
    path = entry(folder)
    if path is None:
        return None
    if path.name == consolidated.FIRST:
        return consolidated.shards(folder), None
    if path.suffix != ".json":
        return [path.name], None
    located = read_index(path)
    return sorted(set(located.values())), located


def entry(folder: Path) -> Path | None:
    """What a folder's weights begin with: their only file, or the index of their shards. None without any. Raises
    ValueError where something that is no file has that name."""
    stems = ("model.safetensors", "pytorch_model.bin")
    places = (folder / f"{stem}{ending}" for stem in stems for ending in ("", ".index.json"))
    return next((path for path in places if is_there(path)), None) or consolidated.entry(folder)


def read_index(path: Path) -> dict[str, str]:
    """The `weight_map` of an index file: tensor name -> file name, each file inside the index's own folder."""
    source = f"{path}: not an index"
    located = parsed(utf8(read_bytes(path, MAX_BYTES), source), source, "; download it again")
    located = located.get("weight_map") if isinstance(located, dict) else None
    if not isinstance(located, dict) or not all(isinstance(file, str) for file in located.values()):
        raise ValueError(f"{source}: expected JSON with a 'weight_map' object; download it again")
    for name, file in located.items():
        if "/" in file or "\\" in file or "\0" in file or file in ("", ".", ".."):
            raise ValueError(f"{path}: tensor {name!r} points to {file!r}, which is not a plain name in this folder")
    return located


class Checkpoint:
    """The tensors of a folder: `info` has what the headers say, `read` goes through the data file by file. Matrices in
    one of the `formats/` are tensors of their plain names; `section` is what config.json says of them, and `idle` are
    the tensors beside them that change nothing here; `files_hold` has the tensors one by one.

    Raises ValueError when there are no weights, a file is missing or damaged, or a file lacks what the index promises;
    reading raises it for a file that has changed since.
    """

    def __init__(self, folder: Path, section: Section | None = None):
        self.info: dict[str, TensorInfo] = {}
        self.stored: dict[str, Stored] = {}
        self.within: dict[str, Within] = {}  # matrices that lie in one tensor with others
        self.folder, self.nbytes = folder, 0
        self.idle = (self._of_blocks if gguf.is_one(folder) else self._of_files)(section or {})

    def _of_blocks(self, section: Section) -> list[str]:
        """Read the beginning of a GGUF file; returns the names of tensors that are of no use."""
        contents = gguf.read(self.folder)
        self.files, self.nbytes = [path.name for path in contents.files], contents.nbytes
        found, idle = tensors(contents, section)
        for name, stored in found.items():
            file = self.folder.name if isinstance(stored, Made) else stored.source.path.name
            kind = None if isinstance(stored, InFile) else stored.title
            nbytes = None if isinstance(stored, InFile) else stored.nbytes
            self.info[name], self.stored[name] = TensorInfo(file, stored.shape, stored.word, kind, nbytes), stored
        self.files_hold = self.info
        return idle

    def _of_files(self, section: Section) -> list[str]:
        """Read the headers of a folder's files; returns the names of tensors that are of no use."""
        folder, found = self.folder, find(self.folder)
        if found is None:
            raise ValueError(
                f"{folder}: no weights found; expected model.safetensors, pytorch_model.bin, "
                "or an index (*.index.json) with its shards"
            )
        self.files, located = found
        missing = [file for file in self.files if not is_there(folder / file)]
        if missing:
            raise ValueError(f"{folder}: the index names files that are not there: {brief(missing)}; download them")
        if self.files[0] == consolidated.FIRST:
            return self._of_parts()
        metadata: dict[str, str] = {}
        for file in self.files:
            source = Source(folder / file, keep=len(self.files) <= MAX_OPEN)
            self.nbytes += source.size
            for name, stored in _headers(source).items():
                if name in self.info:
                    raise ValueError(f"{folder}: tensor {name!r} is in both {self.info[name].file} and {file}")
                self.info[name], self.stored[name] = TensorInfo(file, stored.shape, stored.word), stored
            metadata |= source.metadata
        absent = [name for name, file in (located or {}).items() if self.info.get(name, _NOWHERE).file != file]
        if absent:
            raise ValueError(f"{folder}: the index promises tensors that their files lack: {brief(absent)}")
        self._unstack()
        self.files_hold = self.info  # before matrices are gathered
        return self._gather({**section, METADATA: metadata})

    def _of_parts(self) -> list[str]:
        """Read the headers of files that hold a part of every matrix each; returns the names of idle tensors: none."""
        headers = []
        for file in self.files:
            source = Source(self.folder / file, keep=len(self.files) <= MAX_OPEN)
            headers.append(_headers(source))
            self.nbytes += source.size
        try:
            found = consolidated.joined(headers)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None
        for name, stored in found.items():
            self.info[name], self.stored[name] = TensorInfo(self.files[0], stored.shape, stored.word), stored
        self.files_hold = self.info
        return []

    def _unstack(self) -> None:
        """Have what lies in stacks matrix by matrix."""
        info, stored = self.info, self.stored
        self.info, self.stored = {}, {}
        for name, whole in stored.items():
            matrices: dict[str, Any] = dict(unstacked(name, whole, stored))
            size = math.prod(whole.shape) // max(len(matrices), 1)
            self.within |= {one: Within(name, whole.shape, e * size) for e, one in enumerate(matrices)}
            matrices = matrices or {name: whole}
            if twice := sorted(matrices.keys() & self.stored.keys()):
                raise ValueError(f"{self.folder}: tensor {twice[0]!r} is there twice, in a stack and by itself")
            if len(self.stored) + len(matrices) > MOST_MATRICES:
                raise ValueError(f"{self.folder}: more than {MOST_MATRICES:,} tensors, those in stacks counted each; "
                                 "no model has as many")  # fmt: skip
            self.info |= {one: replace(info[name], shape=each.shape) for one, each in matrices.items()}
            self.stored |= matrices

    def _gather(self, section: Section) -> list[str]:
        """Put matrices where the first of their parts stands; returns the names of those that are of no use."""
        seen = {name: Seen(each.shape, each.dtype, self.stored[name]) for name, each in self.info.items()}
        packed = formats.gathered(seen, section)
        own = [tensor for each in packed.values() for tensor in each.idle]
        idle = list(dict.fromkeys(own + formats.idle(self.stored, packed)))
        owners = {tensor: name for name, each in packed.items() for tensor in each.parts.values()}
        info, stored, left = self.info, self.stored, set(idle)
        self.info, self.stored = {}, {}
        for tensor in info:
            name = owners.get(tensor, tensor)
            if name in self.info or tensor in left:
                continue
            if (made := packed.get(name)) is None or tensor not in owners:
                self.info[tensor], self.stored[tensor] = info[tensor], stored[tensor]
                continue
            parts: dict[str, Any] = {part: stored[each] for part, each in made.parts.items()}
            self.stored[name] = Made(made, parts)
            self.info[name] = TensorInfo(info[tensor].file, made.shape, Made.word, made.title, self.stored[name].nbytes)
        return idle

    def plan(self, rules: Rules, destinations: Mapping[str, Destination]) -> Plan:
        """What the tensors would fill. Of those that lie as the model has them the layout is none."""
        planned = plan(self.info, rules, destinations)
        for name, to in planned.assignments.items():
            stored = self.stored[name]
            if isinstance(stored, Made) and (of_width := stored.packed.of_width):
                planned.assignments[name] = replace(to, layout=None, whole=None)
                if stored.shape[-1] != to.shape[-1] and (packed := of_width(to.shape[-1])):
                    made = self.stored[name] = Made(packed, stored.parts)
                    self.info[name] = replace(self.info[name], shape=made.shape)
        return planned

    @property
    def dtype(self) -> torch.dtype | None:
        """The type that most of the values are stored in, quantised ones aside; None if there are no others."""
        values = collections.Counter[str]()
        for info in self.info.values():
            if info.dtype in DTYPES and info.format is None:
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
        if (first.shape, first.dtype) != (second.shape, second.dtype) or first.dtype not in tensorfile.DTYPES:
            return False
        a, b = self.stored[one].fresh(), self.stored[other].fresh()
        size = math.prod(first.shape)
        places = (slice(*place) for place in tensorfile.blocks(size, EQUAL_VALUES))
        return all(torch.equal(a.values(at.start, at.stop), b.values(at.start, at.stop)) for at in places)

    def read(self, wanted: Callable[[str], bool], done: Callable[[int], None]) -> Iterator[tuple[str, Stored]]:
        """Yield (name, tensor) of each wanted tensor, in the order of files and values, to be read before the next is
        asked for; `done` gets its bytes then."""
        for name, stored in self.stored.items():
            if wanted(name):
                yield name, stored.fresh()
                done(stored.nbytes)


_NOWHERE = TensorInfo("", (), "")


def brief(names: list[str], limit: int = 6) -> str:
    """The first few names and the number of the others, for one line of an error."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _headers(source: Source) -> dict[str, InFile] | dict[str, InStorage]:
    return (tensorfile if source.path.suffix == ".safetensors" else torchfile).read_header(source)
