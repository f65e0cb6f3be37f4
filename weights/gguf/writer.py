"""GGUF files, as llama.cpp reads them, written: a header, metadata by key, a list of tensors, then their data.

Little endian, version 3 of the format. A tensor's row is a run of blocks, each encoded by itself: one value for F32,
F16 and BF16; 32 values for Q8_0, an fp16 scale d and 32 int8 q with x = d q, and for Q4_0, an fp16 scale and 16 bytes
with x = d (q - 8), value i of a block in the low half of byte i and value 16 + i in the high half.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from minillm.guard.writing import complete

ALIGNMENT = 32  # of each tensor's data, and of the first
CHUNK = 2**22  # values encoded at a time: a multiple of every block
UINT32, FLOAT32, STRING = 4, 6, 8  # the types of metadata that are written here


def q8_0(blocks: Tensor) -> Tensor:
    """fp32 `[N, 32]` -> uint8 `[N, 34]`: d = max |x| / 127, q = round(x / d), halves away from zero."""
    scale = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * torch.where(scale > 0, 1 / scale, 0.0)
    whole = scaled.abs().floor()
    rounded = (whole + (2 * (scaled.abs() - whole)).floor()).copysign(scaled)
    return torch.cat((scale.half().view(torch.uint8), rounded.to(torch.int8).view(torch.uint8)), dim=1)


def q4_0(blocks: Tensor) -> Tensor:
    """fp32 `[N, 32]` -> uint8 `[N, 18]`: d = m / -8 for the value m farthest from zero, q = trunc(x / d + 8.5), at most
    15."""
    scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8
    scaled = blocks * torch.where(scale != 0, 1 / scale, 0.0)
    low, high = (scaled + 8.5).clamp(0, 15).to(torch.uint8).chunk(2, dim=1)
    return torch.cat((scale.half().view(torch.uint8), low | high << 4), dim=1)


@dataclass(frozen=True)
class Encoding:
    """`code` in the file; `block` values become `nbytes` bytes by `encode`, fp32 `[N, block]` -> `[N, …]`."""

    code: int
    block: int
    nbytes: int
    encode: Callable[[Tensor], Tensor]


ENCODINGS = {
    "F32": Encoding(0, 1, 4, Tensor.float),
    "F16": Encoding(1, 1, 2, Tensor.half),
    "BF16": Encoding(30, 1, 2, Tensor.bfloat16),
    "Q8_0": Encoding(8, 32, 34, q8_0),
    "Q4_0": Encoding(2, 32, 18, q4_0),
}


@dataclass(frozen=True)
class Entry:
    """One tensor: `shape` as PyTorch has it, slowest axis first, and its values as pieces of whole rows in order, which
    are asked for when they are written."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    pieces: Iterable[Tensor]

    @property
    def nbytes(self) -> int:
        kind = ENCODINGS[self.encoding]
        return torch.Size(self.shape).numel() // kind.block * kind.nbytes


def fitting(encoding: str, row: int) -> str:
    """The encoding, or F16 where a row of so many values is not made of whole blocks."""
    return "F16" if row % ENCODINGS[encoding].block else encoding


def write(path: Path, metadata: Mapping[str, str | int | float], entries: Sequence[Entry]) -> None:
    """Write a file; complete or not at all."""
    with complete(path) as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _value(value))
        offset = 0
        for entry in entries:
            axes = entry.shape[::-1]  # the fastest first
            file.write(_string(entry.name) + struct.pack(f"<I{len(axes)}Q", len(axes), *axes))
            file.write(struct.pack("<IQ", ENCODINGS[entry.encoding].code, offset))
            offset += entry.nbytes + -entry.nbytes % ALIGNMENT
        for entry in entries:
            _align(file)
            _data(file, entry)
        _align(file)


def _data(file: BinaryIO, entry: Entry) -> None:
    kind, start = ENCODINGS[entry.encoding], file.tell()
    for piece in entry.pieces:
        for chunk in piece.flatten().split(CHUNK):
            encoded = kind.encode(chunk.float().view(-1, kind.block)).contiguous()
            file.write(encoded.view(torch.uint8).numpy().data)
    assert file.tell() - start == entry.nbytes, entry.name


def _align(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: str | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    return struct.pack("<II", UINT32, value) if isinstance(value, int) else struct.pack("<If", FLOAT32, value)
