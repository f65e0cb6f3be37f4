"""The `.bin` files that `torch.save` writes: a pickle that describes tensors (`pickled.py`), and their storages.

Since PyTorch 1.6 a file is a zip archive (`archive.py`) with the records `data.pkl`, `byteorder` and `data/KEY` for
each storage. Before, it was a row of pickles (a magic number, a version, the machine, the tensors, the keys of the
storages) and the storages behind them in the order of those keys, each with the number of its values in 8 bytes.

Nothing is unpickled. The values are read from where they lie, and where an archive has checksums (CRC-32), a storage is
compared with its own before it is used, or while it is read.
"""

from __future__ import annotations

import functools
import io
import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.guard.parsing import reading
from minillm.weights.pytorch import archive, pickled
from minillm.weights.pytorch.archive import Record
from minillm.weights.pytorch.pickled import Storage, Strided
from minillm.weights.source import CHUNK_BYTES, NAMES, Kept, Source

MAX_PICKLE_BYTES = 32_000_000
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
PROBLEM, ADVICE = "not a plain file of tensors, or damaged", "save it again as safetensors"
POLYNOMIAL, ONE, X = 0xEDB88320, 1 << 31, 1 << 30  # of CRC-32, the bit of the highest power last


class Stored:
    """The bytes of a storage, compared with their checksum once."""

    def __init__(self, source: Source, record: Record, summed: bool):
        self.source, self.record = source, record
        self.sure = not summed
        self.lock = threading.Lock()

    def fill(self, into: Tensor) -> None:
        """All of them, into a contiguous tensor on the CPU."""
        pieces = self.source.fill(into, self.record.start, not self.sure)
        if not self.sure:
            self._compare(_total(pieces)[1])

    def check(self) -> None:
        crc, memory = (0, 0), torch.empty(min(self.record.nbytes, 4 * CHUNK_BYTES), dtype=torch.uint8)
        with self.lock:
            for start in range(0, 0 if self.sure else self.record.nbytes, len(memory) or 1):
                part = memory[: self.record.nbytes - start]
                crc = _total([*([crc] if start else []), *self.source.fill(part, self.record.start + start, True)])
            if not self.sure:
                self._compare(crc[1])

    def _compare(self, crc: int) -> None:
        if crc != self.record.crc:
            reason = f"a storage's checksum is {crc:08x} and not {self.record.crc:08x}"
            raise ValueError(f"{self.source.path}: damaged ({reason}); download it again")
        self.sure = True


def _total(pieces: list[tuple[int, int]]) -> tuple[int, int]:
    """(bytes, CRC-32) of all pieces."""
    return functools.reduce(_joined, pieces) if pieces else (0, 0)


def _joined(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """(bytes, CRC-32) of two pieces as that of both: the first times x^(8 bytes of the second), plus the second."""
    return first[0] + second[0], _times(_power(8 * second[0]), first[1]) ^ second[1]


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache
def _power(exponent: int) -> int:
    """x to a power, so."""
    result, square = ONE, X
    while exponent:
        if exponent & 1:
            result = _times(square, result)
        exponent, square = exponent >> 1, _times(square, square)
    return result


class InStorage(Kept):
    """A tensor of a `.bin` file, with the methods of `source.InFile`: read when it is asked for, and then kept, as its
    values need not lie in a row."""

    def __init__(self, stored: Stored, at: Strided):
        self.stored, self.at, self.shape, self.dtype = stored, at, at.shape, at.dtype
        self.word = NAMES.get(at.dtype, str(at.dtype))
        self.nbytes = math.prod(at.shape) * at.dtype.itemsize
        super().__init__()

    def fresh(self) -> InStorage:
        """The same tensor, nothing of which has been read."""
        return InStorage(self.stored, self.at)

    def fill(self, into: Tensor, start: int = 0) -> None:
        """Read into a contiguous tensor of this type on the CPU, which says how many values from `start` on."""
        assert into.dtype == self.dtype
        if self.kept is None and into.nbytes == self.nbytes == self.stored.record.nbytes and _in_a_row(self.at):
            return self.stored.fill(into)
        into.copy_(self.values(start, start + into.numel()).view(into.shape))

    def _read(self) -> Tensor:
        """All values in a row. Of a storage that has more, what lies from the first to the last."""
        at, source, record = self.at, self.stored.source, self.stored.record
        if not self.nbytes:
            return torch.empty(0, dtype=at.dtype)
        first, count = at.offset, _last(at) - at.offset + 1
        memory = torch.empty(count, dtype=at.dtype, device="cpu")
        if memory.nbytes == record.nbytes:
            self.stored.fill(memory)
        else:
            self.stored.check()
            source.fill(memory, record.start + first * at.dtype.itemsize)
        return memory.as_strided(at.shape, at.strides).flatten()


def _last(at: Strided) -> int:
    """The place of the last value of a tensor that has some."""
    return at.offset + sum((size - 1) * stride for size, stride in zip(at.shape, at.strides, strict=True))


def _in_a_row(at: Strided) -> bool:
    expected = 1
    for size, stride in zip(at.shape[::-1], at.strides[::-1], strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def read_header(source: Source) -> dict[str, InStorage]:
    """The tensors of a file, in the order of their values. Raises ValueError for one that holds anything else."""
    with reading(source.path, PROBLEM, ADVICE):
        zipped = source.read(0, min(4, source.size)) == archive.SIGNATURE
        content, storages = _archived(source) if zipped else _legacy(source)
        if not isinstance(content, dict):
            raise ValueError(f"expected a dictionary of tensors, found a {type(content).__name__}")
        found: dict[str, InStorage] = {}
        for name, at in content.items():
            if not isinstance(at, Strided):
                raise ValueError(f"expected a dictionary of tensors, but {name[:80]!r} is a {type(at).__name__}")
            found[name] = InStorage(_checked(name, at, storages), at)
    order = {name: (each.stored.record.start, each.at.offset) for name, each in found.items()}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _checked(name: str, at: Strided, storages: dict[str, Stored]) -> Stored:
    """The storage of a tensor, which has as many bytes as it needs."""
    stored = storages.get(at.storage.key)
    if stored is None or stored.record.nbytes != at.storage.nbytes:
        has = "is not there" if stored is None else f"has {stored.record.nbytes:,} bytes, not {at.storage.nbytes:,}"
        raise ValueError(f"the storage of {name[:80]!r} {has}")
    count = math.prod(at.shape)
    if count * at.dtype.itemsize > at.storage.nbytes:  # a view that repeats its storage could claim any size
        raise ValueError(f"tensor {name[:80]!r} repeats its values")
    if count and (_last(at) + 1) * at.dtype.itemsize > at.storage.nbytes:
        raise ValueError(f"tensor {name[:80]!r} reaches beyond its storage")
    return stored


def _archived(source: Source) -> tuple[object, dict[str, Stored]]:
    """What the pickle of an archive describes, and the storages by key."""
    records = archive.records(source)
    folders = {name.partition("/")[0] for name in records}
    if len(folders) != 1 or f"{(folder := folders.pop())}/data.pkl" not in records:
        raise ValueError("the archive has no data.pkl, or more than one folder")
    if f"{folder}/constants.pkl" in records:
        raise ValueError("a TorchScript program")
    summed = any(record.crc for record in records.values())  # torch.serialization.set_crc32_options

    def read(name: str, limit: int, default: bytes) -> bytes:
        if (record := records.get(f"{folder}/{name}")) is None:
            return default
        if record.nbytes > limit:
            raise ValueError(f"a {name} of {record.nbytes:,} bytes, the limit being {limit:,}")
        made = torch.empty(record.nbytes, dtype=torch.uint8)
        Stored(source, record, summed).fill(made)
        return made.numpy().tobytes()

    if read("byteorder", 6, b"little") != b"little":
        raise ValueError("values of another byte order")
    if not read(".storage_alignment", 20, b"64").isdigit():
        raise ValueError("an alignment that is none")
    start = f"{folder}/data/"
    for name, record in records.items():  # of no use here, but where one is damaged the rest may be
        if not name.startswith(start) and record.nbytes < CHUNK_BYTES:
            Stored(source, record, summed).check()
    storages = {
        n.removeprefix(start): Stored(source, each, summed) for n, each in records.items() if n.startswith(start)
    }
    return _all(pickled.Reader(), io.BytesIO(read("data.pkl", MAX_PICKLE_BYTES, b""))), storages


def _all(reader: pickled.Reader, data: io.BytesIO) -> object:
    found = reader.read(data)
    if data.read(1):
        raise ValueError("a description that something follows")
    return found


def _legacy(source: Source) -> tuple[object, dict[str, Stored]]:
    """The same of a file from before PyTorch 1.6."""
    data = io.BytesIO(source.read(0, min(source.size, MAX_PICKLE_BYTES)))
    reader = pickled.Reader(legacy=True)
    magic, version, machine = (reader.read(data) for _ in range(3))
    if magic != MAGIC or version != VERSION:
        raise ValueError("neither an archive nor a row of pickles")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("values of another byte order")
    content, keys = reader.read(data), reader.read(data)
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise ValueError("storages without keys")
    return content, _behind(source, data.tell(), keys, reader.storages)


def _behind(source: Source, at: int, keys: Sequence[str], known: dict[str, Storage]) -> dict[str, Stored]:
    found = {}
    for key in keys:
        if key not in known or at + 8 + known[key].nbytes > source.size:
            raise ValueError(f"the storage {key[:80]!r} is cut off, or no tensor's")
        count = int.from_bytes(source.read(at, 8), "little")
        if count != known[key].count:
            raise ValueError(f"the storage {key[:80]!r} has {count:,} values, not {known[key].count:,}")
        found[key] = Stored(source, Record(at + 8, known[key].nbytes, 0), summed=False)
        at += 8 + known[key].nbytes
    if at != source.size:
        raise ValueError("something follows the storages")
    return found
