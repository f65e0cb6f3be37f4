"""Pictures and sounds in messages: found, named, and taken out, so that a template sees that there is one and no more.

Content is a list of parts, as OpenAI's API has it: {"type": "image", "image": …} with a path, bytes, a Pillow image or
an array; {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}; {"type": "audio", "audio": …};
{"type": "input_audio", "input_audio": {"data": base64, "format": "wav"}}. No address is ever fetched.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minillm.guard.files import read_bytes
from minillm.guard.screen import shown

Kind = Literal["image", "audio"]
MAX_BYTES = 32 * 2**20  # of a file
MAX_MEDIA = 16  # in a conversation
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "audio"),
}
# Keys beside `type` that a part may hold its picture or sound under.
HOLDERS = (*KINDS, "path", "url", "source", "data")
IDLE = ("detail", "format", "cache_control", "media_type", "mime_type")  # keys that change nothing of what is seen


@dataclass(frozen=True)
class Source:
    """A picture or sound that is not decoded yet: the bytes of a file, or what a library has decoded; `name` is what
    errors call it."""

    kind: Kind
    value: Any
    name: str


def taken(messages: Sequence[Any], local: bool = True) -> tuple[list[Any], list[Source]]:
    """Messages in which each part that is a picture or a sound is {"type": its kind} alone, and these parts in order.
    Raises ValueError for what is none, and for paths where they may not be `local`."""
    found: list[Source] = []
    return [_without(each, found, local) for each in messages], found


def beside(images: Any, audio: Any) -> list[dict[str, Any]]:
    """The parts of a message that pictures and sounds make which are given by themselves."""
    given: tuple[tuple[Kind, Any], ...] = (("image", images), ("audio", audio))
    for name, each in (("images", images), ("audio", audio)):
        if each is not None and not isinstance(each, (list, tuple)):
            raise ValueError(f"{name} is a {type(each).__name__}, expected a list of paths, bytes or what they hold")
    return [{"type": kind, kind: value} for kind, values in given for value in values or ()]


def most_pixels(value: Any) -> int | None:
    """What a user says of the size that a picture is seen in."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"max_pixels is {value!r}, it must be a whole number of at least 1")
    return value


def _without(message: Any, found: list[Source], local: bool) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, (list, tuple)) or not any(_kind(part) for part in content):
        return message
    parts: list[Any] = []
    for part in content:
        if (kind := _kind(part)) is None:
            parts.append(part)
            continue
        if len(found) == MAX_MEDIA:
            raise ValueError(f"more than {MAX_MEDIA} pictures and sounds in a conversation; give fewer")
        name = f"{kind} {len(found) + 1}"
        found.append(source(kind, _held(part, kind, name), name, local))
        parts.append({"type": kind})
    return {**message, "content": parts}


def _kind(part: Any) -> Kind | None:
    if not isinstance(part, Mapping):
        return None
    stated = part.get("type")
    if stated in ("video", "video_url", "input_video"):
        raise ValueError("videos are not supported; give pictures of it")
    if isinstance(stated, str):
        return KINDS.get(stated)
    return next((KINDS[key] for key in KINDS if part.get(key) is not None), None)


def _held(part: Mapping[str, Any], kind: Kind, name: str) -> Any:
    if odd := [key for key in part if part[key] is not None and key not in (*HOLDERS, *IDLE, "type")]:
        raise ValueError(f"{name}: {shown(odd[0])} of its part is not read; leave it out")
    stated = [part[key] for key in HOLDERS if part.get(key) is not None]
    value = stated[0] if stated else None
    if isinstance(value, Mapping):  # {"url": …}, {"data": …, "format": …}
        inner = [(key, value[key]) for key in ("url", "data", "path") if value.get(key) is not None]
        stated += inner[1:]
        key, value = inner[0] if inner else ("url", None)
        value = decoded(value, name) if key == "data" and isinstance(value, str) else value
    if len(stated) > 1:
        raise ValueError(f"{name}: its part has {len(stated)} of them; give a part to each")
    return value


def source(kind: Kind, value: Any, name: str, local: bool = True) -> Source:
    """What a user gives as a picture or a sound. Raises ValueError for what cannot be one."""
    if value is None:
        raise ValueError(f"{name}: there is none in its part of the message; give a path, bytes or a data: address")
    if isinstance(value, str) and value.startswith("data:"):
        header, comma, data = value.partition(",")
        if not comma or not header.endswith(";base64"):
            raise ValueError(f"{name}: a data: address that is not base64; write data:{kind}/…;base64,…")
        return Source(kind, decoded(data, name), name)
    if isinstance(value, (str, Path)):
        return Source(kind, _file(value, name, local), str(value)[:200])
    if isinstance(value, (bytes, bytearray, memoryview)):
        if len(value) > MAX_BYTES:
            raise ValueError(f"{name}: {len(value):,} bytes, the limit is {MAX_BYTES:,}; give a smaller one")
        return Source(kind, bytes(value), name)
    return Source(kind, value, name)


def _file(value: str | Path, name: str, local: bool) -> bytes:
    if isinstance(value, str) and "://" in value[:16]:
        raise ValueError(f"{name}: an address, and none is fetched; send the file itself as data:…;base64,…")
    if not local:
        raise ValueError(f"{name}: no file is read for a request; send it as data:…;base64,…")
    path = Path(value)
    try:
        return read_bytes(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no file can have this name"
        raise ValueError(f"{str(path)[:200]}: {reason.lower()}; give the path of a file") from None


def decoded(data: str, name: str) -> bytes:
    """The bytes of base64. Raises ValueError for what is not, before more is decoded than may be."""
    if len(data) > MAX_BYTES * 4 // 3 + 4:
        raise ValueError(f"{name}: over {MAX_BYTES:,} bytes, which is the limit; give a smaller one")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name}: its base64 is broken; encode the file again") from None
