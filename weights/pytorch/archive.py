"""The zip archives that `torch.save` writes (PKWARE's APPNOTE 6.3, sections 4.3.7 to 4.5.3): where each record lies.

Records are read as they lie in the file, so whatever could make another reader see other bytes is refused: compression,
encryption, a name that stands there twice, a local header that disagrees with the directory, anything behind the
directory, records that share bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from minillm.weights.source import Source

LOCAL, ENTRY = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L")
END, LOCATOR, END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
SIGNATURE = b"PK\x03\x04"
MAX_RECORDS = 100_000
MAX_DIRECTORY_BYTES = 16_000_000  # of about a hundred bytes for a record
STREAMED, HARMLESS = 8, 8 | 2048  # flags: sizes follow the data; names are UTF-8
WIDE = 0xFFFFFFFF  # what a field of 32 bits says when the value stands in the extra ones


@dataclass(frozen=True)
class Record:
    """Where a record's bytes lie, and their CRC-32; 0 where none of the archive's records has one."""

    start: int
    nbytes: int
    crc: int


def records(source: Source) -> dict[str, Record]:
    """The records of an archive by name. Raises ValueError for one that is not plain."""
    begin, end, count = _directory(source)
    data, found, at = source.read(begin, end - begin), dict[str, Record](), 0
    for _ in range(count):
        if len(data) - at < ENTRY.size:
            raise ValueError("the archive's directory is cut off")
        name, header, record, size = _entry(data, at)
        at += size
        if name in found:
            raise ValueError(f"the archive has {name[:80]!r} twice")
        found[name] = _located(source, name, header, record, begin)
    if at != len(data):
        raise ValueError("the archive's directory is longer than its entries")
    last = 0
    for name, record in sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if record.start < last:
            raise ValueError(f"{name[:80]!r} shares bytes with another record of the archive")
        last = record.start + record.nbytes
    return found


def _directory(source: Source) -> tuple[int, int, int]:
    """Where the directory begins and ends, and its entries."""
    place = source.size - END.size
    if place < 0:
        raise ValueError("the archive is cut off")
    signature, disk, first, here, count, size, begin, comment = END.unpack(source.read(place, END.size))
    if signature != b"PK\x05\x06" or comment or disk or first or here != count:
        raise ValueError("the archive is cut off, or something follows it")
    if (at := place - LOCATOR.size) >= 0:
        signature, disk, begin64, disks = LOCATOR.unpack(source.read(at, LOCATOR.size))
        if signature == b"PK\x06\x07":
            if begin64 != at - END64.size or disk or disks > 1:
                raise ValueError("the archive's end is not where its directory is")
            place = begin64
            signature, _, _, _, disk, first, here, count, size, begin = END64.unpack(source.read(place, END64.size))
            if signature != b"PK\x06\x06" or disk or first or here != count:
                raise ValueError("the archive's end is damaged")
    if begin + size != place or size > MAX_DIRECTORY_BYTES:
        raise ValueError(f"the archive's directory of {size:,} bytes, the limit being {MAX_DIRECTORY_BYTES:,}")
    if count > MAX_RECORDS:
        raise ValueError(f"the archive has {count:,} records, more than the {MAX_RECORDS:,} allowed")
    return begin, place, count


def _entry(data: bytes, at: int) -> tuple[str, tuple[int, int, int], Record, int]:
    """A directory's entry: name, (flags, method, offset of the local header), record, bytes of the entry."""
    fields = ENTRY.unpack_from(data, at)
    signature, flags, method, crc, packed, size = fields[0], *(fields[each] for each in (3, 4, 7, 8, 9))
    of_name, of_extra, of_comment, disk, offset = fields[10], fields[11], fields[12], fields[13], fields[16]
    names = at + ENTRY.size
    name, extra = data[names : names + of_name], data[names + of_name : names + of_name + of_extra]
    if signature != b"PK\x01\x02" or disk or len(extra) != of_extra:
        raise ValueError("the archive's directory is damaged")
    size, packed, offset = _wide(extra, [size, packed, offset])
    if method or flags & ~HARMLESS or packed != size:
        raise ValueError(
            f"{name[:80].decode(errors='replace')!r} is compressed or encrypted, which torch.save never does"
        )
    total = ENTRY.size + of_name + of_extra + of_comment
    return name.decode("utf-8"), (flags, method, offset), Record(0, size, crc), total


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Values, those that 32 bits do not hold from the extra field of zip64."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind != 1:
            continue
        for number, value in enumerate(values):
            if value == WIDE:
                if len(field) < 8:
                    raise ValueError("the archive's directory is damaged")
                values[number], field = int.from_bytes(field[:8], "little"), field[8:]
        return values
    return values


def _located(source: Source, name: str, header: tuple[int, int, int], record: Record, end: int) -> Record:
    """The record at its place, behind its local header and before `end`."""
    flags, method, offset = header
    encoded = name.encode()
    if offset + LOCAL.size + len(encoded) > end:
        raise ValueError(f"{name[:80]!r} lies outside of the archive")
    data = source.read(offset, LOCAL.size + len(encoded))
    signature, _, local_flags, local_method, _, _, crc, packed, size, of_name, of_extra = LOCAL.unpack_from(data)
    streamed = flags & STREAMED and not (crc or packed or size)
    agrees = streamed or WIDE in (packed, size) or (crc, packed, size) == (record.crc, record.nbytes, record.nbytes)
    same = (local_flags, local_method, data[LOCAL.size :], of_name) == (flags, method, encoded, len(encoded))
    if signature != SIGNATURE or not same or not agrees:
        raise ValueError(f"what stands before {name[:80]!r} is not what the archive's directory says")
    start = offset + LOCAL.size + of_name + of_extra
    if start + record.nbytes > end:
        raise ValueError(f"{name[:80]!r} lies outside of the archive")
    return Record(start, record.nbytes, record.crc)
