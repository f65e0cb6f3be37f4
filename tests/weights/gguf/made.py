"""GGUF files put together byte by byte, right ones and wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

Tensor = tuple[Sequence[int], int, bytes]  # sizes, the fastest first; number of the kind; values


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(given: Any) -> bytes:
    """A type and a value: a u32, an f32, a flag, a text, a list of these, or bytes as they are."""
    if isinstance(given, bytes):
        return given
    if isinstance(given, list):
        parts = [value(each) for each in given]
        kind = parts[0][:4] if parts else struct.pack("<I", 4)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(parts)) + b"".join(part[4:] for part in parts)
    if isinstance(given, bool):
        return struct.pack("<I?", 7, given)
    if isinstance(given, int):
        return struct.pack("<II", 4, given) if given >= 0 else struct.pack("<Ii", 5, given)
    return struct.pack("<If", 6, given) if isinstance(given, float) else struct.pack("<I", 8) + text(given)


def file(
    pairs: Mapping[str, Any] | Sequence[tuple[str | bytes, Any]],
    tensors: Mapping[str, Tensor] | Sequence[tuple[str, Tensor]] = (),
    version: int = 3,
    counts: tuple[int, int] | None = None,
    offsets: Mapping[str, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; `counts` and `offsets` are what it says in place of the truth."""
    listed, named = (list(each.items()) if isinstance(each, Mapping) else list(each) for each in (pairs, tensors))
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(named), len(listed))))
    head += b"".join(text(key) + value(each) for key, each in listed)
    data = b""
    for name, (sizes, kind, values) in named:
        offset = (offsets or {}).get(name, len(data))
        head += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
        data += values + bytes(-len(values) % alignment)
    return head + bytes(-len(head) % alignment) + data
