"""GGUF files written: a header, metadata by key, a list of tensors, then their data, as `reader.py` describes them.

Little endian, version 3 of the format. A tensor's row is a run of blocks, each encoded by itself (`quantise.py`).
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from minillm.guard.writing import complete
from minillm.weights.gguf.kinds import KINDS
from minillm.weights.gguf.quantise import LARGEST, QUANTISERS
from minillm.weights.gguf.reader import ALIGNMENT, LIST, MAGIC, TEXT
from minillm.weights.threads import in_threads

CHUNK = 2**18  # values encoded at a time by a thread: a multiple of every block
CODES = {kind.name: code for code, kind in KINDS.items()}
BLOCKS = {kind.name: kind for kind in KINDS.values()}
WIDE = ("F32", "BF16")  # what takes numbers that fp16 does not
UINT32, INT32, FLOAT32, FLAG = 4, 5, 6, 7  # the types of metadata that are written here beside texts and lists
LISTS = {"f": FLOAT32, "i": INT32, "b": FLAG}  # by numpy's kinds


@dataclass(frozen=True)
class Entry:
    """One tensor: `shape` as PyTorch has it, slowest axis first, and its values in order, in pieces of whole blocks
    that are asked for when they are written."""

    name: str
    shape: tuple[int, ...]
    kind: str
    pieces: Iterable[Tensor]

    @property
    def nbytes(self) -> int:
        return nbytes(self.kind, self.shape)


def nbytes(kind: str, shape: Sequence[int]) -> int:
    """What a tensor takes."""
    block = BLOCKS[kind]
    return torch.Size(shape).numel() // block.block * block.nbytes


def write(
    path: Path,
    metadata: Mapping[str, Any],
    entries: Sequence[Entry],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write a file; complete or not at all. Returns its bytes. Raises ValueError where the disk has no room for it, and
    for values that a kind of blocks cannot hold."""
    head = _head(metadata, entries)
    total = len(head) + sum(entry.nbytes + -entry.nbytes % ALIGNMENT for entry in entries)
    if (room := shutil.disk_usage(path.parent).free) < total:
        raise ValueError(f"{path}: {total:,} bytes are needed, the disk has {room:,} left; choose another --output")
    with complete(path) as file:
        file.write(head)
        for entry in entries:
            _data(file, entry)
            file.write(bytes(-entry.nbytes % ALIGNMENT))
            progress(file.tell(), total)
        assert file.tell() == total
    return total


def _head(metadata: Mapping[str, Any], entries: Sequence[Entry]) -> bytes:
    made = [MAGIC, struct.pack("<IQQ", 3, len(entries), len(metadata))]
    for key, value in metadata.items():
        made += [_text(key), _value(value)]
    offset = 0
    for entry in entries:
        axes = entry.shape[::-1]  # the fastest first
        made += [_text(entry.name), struct.pack(f"<I{len(axes)}Q", len(axes), *axes)]
        made.append(struct.pack("<IQ", CODES[entry.kind], offset))
        offset += entry.nbytes + -entry.nbytes % ALIGNMENT
    head = b"".join(made)
    return head + bytes(-len(head) % ALIGNMENT)


def _data(file: BinaryIO, entry: Entry) -> None:
    start = file.tell()
    for encoded in _encoded(entry):
        file.write(encoded.numpy().data)
    assert file.tell() - start == entry.nbytes, entry.name


def _encoded(entry: Entry) -> Iterator[Tensor]:
    """The bytes of a tensor, in order."""
    block, quantise = BLOCKS[entry.kind].block, QUANTISERS[entry.kind]

    def encode(chunk: Tensor) -> Tensor:
        if entry.kind not in WIDE and (largest := float(chunk.abs().max())) > LARGEST:
            advice = f"{entry.kind} holds {LARGEST:.0f} at most; take bf16 or f32"
            raise ValueError(f"{entry.name} has a value of magnitude {largest:.4g}; {advice}")
        return quantise(chunk.float().view(-1, block)).contiguous()

    return in_threads(encode, (chunk for piece in entry.pieces for chunk in piece.flatten().split(CHUNK)))


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + _text(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", LIST, TEXT, len(value)) + b"".join(map(_text, value))
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", LIST, LISTS[value.dtype.kind], len(value)) + value.tobytes()
    if isinstance(value, bool):
        return struct.pack("<I?", FLAG, value)
    return struct.pack("<II", UINT32, value) if isinstance(value, int) else struct.pack("<If", FLOAT32, value)
