"""Pictures, videos and sounds in messages: found, named, and taken out, so that a template sees that there is one and
no more.

Content is a list of parts, as OpenAI's API has it: {"type": "image", "image": …} with a path, bytes, a Pillow image or
an array; {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}; {"type": "audio", "audio": …};
{"type": "input_audio", "input_audio": {"data": base64, "format": "wav"}}; {"type": "video", "video": …} with the path
or bytes of a file, a folder or list of pictures, or an array `[frames, height, width, 3]`, and beside it `fps`, the
frames a second that such a list has, and `max_frames`, how many are looked at. No address is ever fetched.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minillm.guard.files import is_there, read_bytes
from minillm.guard.screen import shown

Kind = Literal["image", "audio", "video"]
SEVERAL: dict[Kind, str] = {"image": "images", "audio": "sounds", "video": "videos"}
MAX_BYTES = 32 * 2**20  # of a file
MAX_VIDEO_BYTES = 4 * 2**30  # of a video's, which is not read at once
MAX_MEDIA = 16  # in a conversation
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "audio"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
}
OF_VIDEOS = ("fps", "max_frames")
MAX_FRAMES = 10_000  # of a video that is given frame by frame
FRAMES = "data:video/jpeg"  # pictures in base64 behind one another, with commas between them, as vLLM has it
# Keys beside `type` that a part may hold its picture or sound under.
HOLDERS = (*KINDS, "path", "url", "source", "data")
IDLE = ("detail", "format", "cache_control", "media_type", "mime_type")  # keys that change nothing of what is seen


@dataclass(frozen=True)
class Source:
    """A picture, video or sound that is not decoded yet: the bytes of a file, or what a library has decoded, of a video
    also the path of a file, or its frames one by one; `name` is what errors call it. `fps`: frames a second of a video
    that does not say it itself; `max_frames`: how many of them are looked at."""

    kind: Kind
    value: Any
    name: str
    fps: float | None = None
    max_frames: int | None = None


def taken(messages: Sequence[Any], local: bool = True) -> tuple[list[Any], list[Source]]:
    """Messages in which each part that is a picture or a sound is {"type": its kind} alone, and these parts in order.
    Raises ValueError for what is none, and for paths where they may not be `local`."""
    found: list[Source] = []
    return [_without(each, found, local) for each in messages], found


def beside(images: Any, audio: Any, videos: Any = None) -> list[dict[str, Any]]:
    """The parts of a message that pictures, sounds and videos make which are given by themselves; a video may be such a
    part already, so as to say more of it."""
    given: tuple[tuple[str, Kind, Any], ...] = (
        ("images", "image", images), ("videos", "video", videos), ("audio", "audio", audio)
    )  # fmt: skip
    parts: list[dict[str, Any]] = []
    for name, kind, each in given:
        if each is not None and not isinstance(each, (list, tuple)):
            raise ValueError(f"{name} is a {type(each).__name__}, expected a list of paths, bytes or what they hold")
        for value in each or ():
            said = value if kind == "video" and isinstance(value, Mapping) else {kind: value}
            parts.append({**said, "type": kind})
    return parts


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
            raise ValueError(f"more than {MAX_MEDIA} pictures, videos and sounds in a conversation; give fewer")
        name = f"{kind} {len(found) + 1}"
        of_video = {key: part[key] for key in OF_VIDEOS if kind == "video" and part.get(key) is not None}
        found.append(source(kind, _held(part, kind, name), name, local, **of_video))
        parts.append({"type": kind})
    return {**message, "content": parts}


def _kind(part: Any) -> Kind | None:
    if not isinstance(part, Mapping):
        return None
    stated = part.get("type")
    if isinstance(stated, str):
        return KINDS.get(stated)
    return next((KINDS[key] for key in KINDS if part.get(key) is not None), None)


def _held(part: Mapping[str, Any], kind: Kind, name: str) -> Any:
    known = (*HOLDERS, *IDLE, "type", *(OF_VIDEOS if kind == "video" else ()))
    if odd := [key for key in part if part[key] is not None and key not in known]:
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


def source(
    kind: Kind, value: Any, name: str, local: bool = True, fps: float | None = None, max_frames: int | None = None
) -> Source:
    """What a user gives as a picture, a sound or a video. Raises ValueError for what cannot be one."""
    if value is None:
        raise ValueError(f"{name}: there is none in its part of the message; give a path, bytes or a data: address")
    if kind == "video":
        return _video(value, name, local, fps, max_frames)
    if isinstance(value, str) and value.startswith("data:"):
        return Source(kind, decoded(_data(value, kind, name), name), name)
    if isinstance(value, (str, Path)):
        return Source(kind, _file(value, name, local), str(value)[:200])
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Source(kind, _within(bytes(value), name), name)
    return Source(kind, value, name)


def _data(value: str, kind: Kind, name: str) -> str:
    """The base64 of a data: address."""
    header, comma, data = value.partition(",")
    if not comma or not header.endswith(";base64"):
        raise ValueError(f"{name}: a data: address that is not base64; write data:{kind}/…;base64,…")
    return data


def _within(value: bytes, name: str) -> bytes:
    if len(value) > MAX_BYTES:
        raise ValueError(f"{name}: {len(value):,} bytes, the limit is {MAX_BYTES:,}; give a smaller one")
    return value


def _video(value: Any, name: str, local: bool, fps: Any, max_frames: Any) -> Source:
    """A request gives frames alone, JPEG pictures behind one another in a data: address: files of videos have too many
    forms to decode those of strangers."""
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0.001 <= fps <= 1000):
        raise ValueError(f"{name}: fps is {shown(fps)}, expected a number from 0.001 to 1000")
    if max_frames is not None and (isinstance(max_frames, bool) or not isinstance(max_frames, int) or max_frames < 2):
        raise ValueError(f"{name}: max_frames is {shown(max_frames)}, expected a whole number of at least 2")
    if isinstance(value, str) and value.startswith("data:"):
        data = _data(value, "video", name)
        if value.startswith(FRAMES):
            found: Any = [Source("image", decoded(each, name), name) for each in few(data.split(","), name)]
        elif local:
            found = decoded(data, name)
        else:
            raise ValueError(f"{name}: a file; send its frames as {FRAMES};base64,FRAME,FRAME,…")
    elif isinstance(value, (list, tuple)):
        found = list(value) if local else [source("image", each, name, local) for each in few(value, name)]
    elif isinstance(value, (str, Path)):
        found, name = _path(value, name, local), str(value)[:200]
    else:
        found = _within(bytes(value), name) if isinstance(value, (bytes, bytearray, memoryview)) else value
    return Source("video", found, name, None if fps is None else float(fps), max_frames)


def few(frames: Sequence[Any], name: str) -> Sequence[Any]:
    """These, unless they are too many."""
    if len(frames) > MAX_FRAMES:
        raise ValueError(f"{name}: {len(frames):,} frames, the limit is {MAX_FRAMES:,}; leave some out")
    return frames


def _path(value: str | Path, name: str, local: bool) -> Path | list[Path]:
    """The path of a video's file, or those of the frames in a folder, by their names."""
    _local(value, name, local)
    path = Path(value)
    try:
        if path.is_dir():
            return sorted(each for each in path.iterdir() if not each.name.startswith("."))
        if not is_there(path):
            raise FileNotFoundError(2, "no such file or folder")
        if (size := path.stat().st_size) > MAX_VIDEO_BYTES:
            raise ValueError(f"{path}: {size:,} bytes, the limit is {MAX_VIDEO_BYTES:,}; give a shorter one")
    except (OSError, ValueError) as error:
        raise _unread(path, error) from None
    return path


def _local(value: str | Path, name: str, local: bool) -> None:
    if isinstance(value, str) and "://" in value[:16]:
        raise ValueError(f"{name}: an address, and none is fetched; send the file itself as data:…;base64,…")
    if not local:
        raise ValueError(f"{name}: no file is read for a request; send it as data:…;base64,…")


def _file(value: str | Path, name: str, local: bool) -> bytes:
    _local(value, name, local)
    path = Path(value)
    try:
        return read_bytes(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise _unread(path, error) from None


def _unread(path: Path, error: OSError | ValueError) -> ValueError:
    if isinstance(error, ValueError) and str(path) in str(error):
        return error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "no file can have this name"
    return ValueError(f"{str(path)[:200]}: {reason.lower()}; give the path of a file")


def decoded(data: str, name: str) -> bytes:
    """The bytes of base64. Raises ValueError for what is not, before more is decoded than may be."""
    if len(data) > MAX_BYTES * 4 // 3 + 4:
        raise ValueError(f"{name}: over {MAX_BYTES:,} bytes, which is the limit; give a smaller one")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name}: its base64 is broken; encode the file again") from None
