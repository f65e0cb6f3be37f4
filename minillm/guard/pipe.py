"""Messages through a pipe between two processes: a length in 8 bytes, then so many bytes."""

from __future__ import annotations

from typing import IO


def write(stream: IO[bytes], data: bytes) -> None:
    """A whole message. Raises OSError when the other side has gone."""
    for part in (len(data).to_bytes(8, "big"), data):
        left = memoryview(part)
        while left:
            left = left[stream.write(left) :]  # a raw stream may take less than all
    stream.flush()


def read(stream: IO[bytes], limit: int) -> bytes | None:
    """The next message; None when the other side has gone. Raises ValueError for one of more than `limit` bytes."""
    head = _exactly(stream, 8)
    if head is None:
        return None
    if (size := int.from_bytes(head, "big")) > limit:
        raise ValueError(f"its answer of {size:,} bytes is more than the {limit:,} allowed")
    return _exactly(stream, size)


def _exactly(stream: IO[bytes], size: int) -> bytes | None:
    parts = []
    while size:
        if not (part := stream.read(size)):
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
