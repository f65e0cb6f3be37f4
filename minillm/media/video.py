"""Frames of a video: of a file through PyAV, of an animated GIF, WebP or PNG through Pillow, or given one by one.

What the header says is checked before anything is decoded, and only the frames that are asked for are kept.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from minillm.guard.files import read_bytes
from minillm.media import pictures
from minillm.media.sources import MAX_BYTES, MAX_FRAMES, Source, few, source

Frame = NDArray[np.uint8]  # [height, width, 3]
USUAL_RATE = 2.0  # frames a second of pictures that say nothing: what a processor takes of a video
MAX_SECONDS = 2 * 3600.0
SHARE = 0.5  # of the frames that are looked for, which must be there: fewer say that the header or the file is broken
MAX_ANIMATED = 2**31  # pixels of all frames of an animated picture, each of which is drawn over the one before it
ANIMATED = ("GIF", "WEBP", "PNG")
MAGIC = ((0, b"GIF8"), (8, b"WEBP"), (0, b"\x89PNG"))
# Formats of files by what stands at a place near their beginning, as FFmpeg calls them. A format is never guessed: some
# are lists of other files to read.
CONTAINERS = (
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
)


@dataclass(frozen=True)
class Clip:
    """So many frames, `rate` a second, of so many pixels; `frames` decodes those of the numbers it is given, which
    grow."""

    name: str
    count: int
    rate: float
    height: int
    width: int
    frames: Callable[[Sequence[int]], Iterator[Frame]]


def opened(given: Source) -> Clip:
    """What can be said before frames are decoded. Raises ValueError for what is no video, or is too long or large."""
    value, name = given.value, given.name
    if isinstance(value, np.ndarray):
        clip = _of_array(value, given)
    elif isinstance(value, list):
        clip = _of_list(value, given)
    elif isinstance(value, (bytes, Path)):
        if given.fps is not None:
            raise ValueError(
                f"{name}: fps goes with frames that are given one by one, a file has its own; leave it out"
            )
        head = value[:12] if isinstance(value, bytes) else _head(value, name)
        animated = any(head[at:].startswith(magic) for at, magic in MAGIC)
        clip = _of_animated(value, name) if animated else _of_file(value, name, head)
    else:
        raise ValueError(f"{name}: a {type(value).__name__}, expected a path, bytes, a list of pictures or an array")
    if clip.count < 2:
        raise ValueError(f"{name}: {clip.count} frames, a video has two at least; give it as a picture (image)")
    if clip.count > clip.rate * MAX_SECONDS:
        raise ValueError(
            f"{name}: {clip.count / clip.rate:,.0f} seconds, the limit is {MAX_SECONDS:,.0f}; cut it into shorter ones"
        )
    pictures.within((clip.width, clip.height), name)
    return clip


def _head(path: Path, name: str) -> bytes:
    with _readable(name), open(path, "rb") as file:
        return file.read(12)


def _of_array(value: NDArray[Any], given: Source) -> Clip:
    if value.dtype != np.uint8 or value.ndim != 4 or value.shape[3] != 3:
        shape = f"{value.dtype} {list(value.shape)}"
        raise ValueError(f"{given.name}: an array of {shape}, expected uint8 [frames, height, width, 3]")
    count, height, width, _ = value.shape
    return Clip(
        given.name, count, given.fps or USUAL_RATE, height, width, lambda wanted: (value[index] for index in wanted)
    )


def _of_list(value: list[Any], given: Source) -> Clip:
    few(value, given.name)
    if not value:
        raise ValueError(f"{given.name}: there is no frame in it; give pictures, whose names have their order")

    def picture(index: int) -> Frame:
        each = value[index]
        name = f"{given.name} frame {index + 1}"
        return np.asarray(pictures.opened(each if isinstance(each, Source) else source("image", each, name)))

    height, width = picture(0).shape[:2]

    def frames(wanted: Sequence[int]) -> Iterator[Frame]:
        for index in wanted:
            found = picture(index)
            if found.shape[:2] != (height, width):
                size = f"{found.shape[1]} x {found.shape[0]} pixels, the first has {width} x {height}"
                raise ValueError(f"{given.name} frame {index + 1}: {size}; give frames of one size")
            yield found

    return Clip(given.name, len(value), given.fps or USUAL_RATE, height, width, frames)


def _of_animated(value: bytes | Path, name: str) -> Clip:
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("animated pictures need Pillow: pip install -e '.[media]' in the clone") from None
    data = value if isinstance(value, bytes) else read_bytes(value, MAX_BYTES)

    def each_frame(image: Any) -> Iterator[Any]:
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            yield image

    @contextmanager
    def animation() -> Iterator[Any]:
        with _readable(name):
            try:
                with Image.open(io.BytesIO(data), formats=ANIMATED) as image:
                    yield image
            except Image.DecompressionBombError:
                raise ValueError(f"{name}: more pixels than the {pictures.MAX_PIXELS:,} that are decoded") from None

    def frames(wanted: Sequence[int]) -> Iterator[Frame]:
        numbers = set(wanted)
        with animation() as image:
            for index, frame in enumerate(itertools.islice(each_frame(image), max(numbers) + 1)):
                if index in numbers:
                    yield np.asarray(pictures.over_white(frame.copy()))

    with animation() as image:
        width, height = image.size
        count = getattr(image, "n_frames", 1)
        if count > MAX_FRAMES or count * width * height > MAX_ANIMATED:
            raise ValueError(
                f"{name}: {count:,} frames of {width:,} x {height:,} pixels, the limits are {MAX_FRAMES:,} frames and "
                f"{MAX_ANIMATED:,} pixels; give a shorter or smaller one"
            )
        # Browsers take 100 ms where a frame says nothing.
        wait = sum(frame.info.get("duration") or 100 for frame in each_frame(image)) if count > 1 else 1000
    return Clip(name, count, count * 1000 / wait, height, width, frames)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """One clear line of what decoders raise for files that are cut or made up."""
    try:
        with pictures.DECODING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ValueError as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise ValueError(f"{name}: {_WHOLE}") from None
    except (OSError, SyntaxError, MemoryError, ArithmeticError, LookupError, TypeError, AttributeError, EOFError):
        raise ValueError(f"{name}: {_WHOLE}") from None


_WHOLE = "no video that can be read; supported are whole MP4, MOV, MKV, WEBM, AVI, GIF, WEBP and APNG files"


def _file(value: bytes | Path) -> BinaryIO:
    return io.BytesIO(value) if isinstance(value, bytes) else value.open("rb")


def _of_file(value: bytes | Path, name: str, head: bytes) -> Clip:
    kind = next((kind for at, magic, kind in CONTAINERS if head[at:].startswith(magic)), None)
    if kind is None:
        raise ValueError(f"{name}: {_WHOLE}")
    try:
        import av
    except ImportError:
        raise ValueError(
            f"{name}: files of videos need PyAV: pip install -e '.[video]' in the clone; a folder of frames, a GIF or "
            "a WebP does without"
        ) from None

    @contextmanager
    def stream() -> Iterator[tuple[Any, Any]]:
        with _readable(name):
            try:
                with _file(value) as file, av.open(file, format=kind) as container:
                    if not container.streams.video:
                        raise ValueError(f"{name}: there is no video in it")
                    yield container, container.streams.video[0]
            except av.FFmpegError:
                raise ValueError(f"{name}: {_WHOLE}") from None

    def frames(wanted: Sequence[int]) -> Iterator[Frame]:
        numbers, last, found, index = set(wanted), None, 0, 0
        with stream() as (container, video):
            for index, frame in enumerate(container.decode(video)):
                pictures.within((frame.width, frame.height), name)  # which may differ from what the header says
                last = frame
                if index in numbers:
                    found += 1
                    yield _upright(frame)
                if index >= max(numbers):
                    break
        if last is None or index + 1 < max(numbers) * SHARE:
            lacks = f"its header says that there is frame {max(numbers) + 1:,}, and there are {index + 1:,}"
            raise ValueError(f"{name}: {_WHOLE if last is None else lacks}")
        for _ in range(len(numbers) - found):  # headers that promise a few frames more
            yield _upright(last)

    with stream() as (container, video):
        width, height = video.codec_context.width, video.codec_context.height
        pictures.within((width, height), name)
        rate = float(video.average_rate or video.guessed_rate or 0)
        count = video.frames or sum(1 for packet in container.demux(video) if packet.size)
    if not 0.001 <= rate <= 1000:
        raise ValueError(f"{name}: {rate:g} frames a second, expected 0.001 to 1000; give its frames instead")
    height, width = next(frames([0])).shape[:2]
    return Clip(name, count, rate, height, width, frames)


def _upright(frame: Any) -> Frame:
    """In RGB, and turned as a telephone's file asks for."""
    made: Frame = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(made, frame.rotation // 90)) if frame.rotation % 360 else made
