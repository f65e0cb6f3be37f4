"""Pictures and sounds by strangers: each that cannot be is refused in one line, before it takes time or memory."""

from __future__ import annotations

import base64
import io
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
from PIL import Image

from minillm import generate
from minillm.media import pictures, sound, sources
from minillm.media.settings import Sounds
from tests.media.recorded import loaded, picture

HEARD = Sounds(16000, 8, 400, 160, 2)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A header that says anything, and little behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def wav(rate: int = 16000, channels: int = 1, frames: int = 100, said: int | None = None, bits: int = 16) -> bytes:
    data = b"\0" * (frames * channels * bits // 8)
    size = len(data) if said is None else said
    made = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * bits // 8 % 2**32, channels * bits // 8, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + size)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + made
        + b"data"
        + struct.pack("<I", size)
        + data
    )


BROKEN = {
    "nothing": b"",
    "a text": b"GIF89a? no, a text",
    "a cut picture": saved("PNG", (400, 300))[:200],
    "a cut photograph": saved("JPEG", (400, 300))[:300],
    "half a header": png(10, 10)[:20],
    "a header alone": png(300, 300),
    "damaged data": saved("PNG").replace(b"IDAT", b"IDAU"),
    "another format": saved("TIFF"),
    "a program of PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "an icon": saved("ICO"),
    "a bomb of a header": png(60_000, 60_000),
    "a bomb that Pillow warns of": png(9_999, 9_999),
    "no width": png(0, 10),
    "a line": png(100_000, 3),
}


@pytest.mark.parametrize("name", BROKEN)
def test_pictures(name: str) -> None:
    process, started = psutil.Process(), time.process_time()
    before = process.memory_info().rss
    with pytest.raises(ValueError, match=r"^image 1: ") as refused:
        pictures.opened(sources.source("image", BROKEN[name], "image 1"))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200
    assert process.memory_info().rss - before < 2**26  # of what 3.6 billion pixels would take not a hundredth
    assert time.process_time() - started < 5


def test_what_pillow_may_decode() -> None:
    """Only formats of the list, whatever else the library knows."""
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        assert pictures.opened(sources.source("image", saved(kind), "one")).size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS is not None


def test_turned_and_transparent_pictures() -> None:
    """As a camera held it; and over white."""
    turned = Image.Exif()
    turned[0x0112] = 6
    assert pictures.opened(sources.source("image", saved("JPEG", exif=turned), "one")).size == (30, 40)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert pictures.opened(sources.Source("image", clear, "one")).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    assert pictures.opened(sources.Source("image", palette, "one")).getpixel((0, 0)) == (255, 255, 255)


def test_levels_of_16_bits() -> None:
    """Their upper halves, as of a picture in colour; levels without a greatest are no picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 511, 32768, 65535]], np.uint16)).save(buffer, "PNG")
    made = pictures.opened(sources.source("image", buffer.getvalue(), "one"))
    assert np.asarray(made)[0].tolist() == [[each] * 3 for each in (0, 1, 128, 255)]
    for kind in (np.int32, np.float32):
        with pytest.raises(ValueError, match=r"one: levels of mode [IF]"):
            pictures.opened(sources.Source("image", Image.fromarray(np.zeros((4, 4), kind)), "one"))


def test_pictures_that_pillow_has_opened_and_not_read() -> None:
    cut = Image.open(io.BytesIO(saved("PNG", (400, 300))[:200]))
    with pytest.raises(ValueError, match="one: no picture that can be read"):
        pictures.opened(sources.Source("image", cut, "one"))


def test_one_picture_is_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the warnings of others stay what they were."""
    running, most, known, data = 0, 0, list(warnings.filters), saved("PNG")
    usual = Image.open

    def slow(*given: Any, **named: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return usual(*given, **named)

    monkeypatch.setattr(Image, "open", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: pictures.opened(sources.source("image", data, "one")), range(8)))
    assert most == 1
    assert list(warnings.filters) == known


class Shaped:
    __array_interface__: ClassVar[dict[str, Any]] = {}


VALUES: list[Any] = [
    Shaped(), 3, ["a"], {"url": "x"}, np.zeros((3, 3)), np.zeros((3, 3, 7), np.uint8), np.zeros((2, 2, 2, 3), np.uint8),
    np.zeros((0, 4), np.uint8), object(),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(type(value).__name__))
def test_values_that_are_no_pictures(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^image 1: "):
        pictures.opened(sources.source("image", value, "image 1"))


ADDRESSES = [
    "http://127.0.0.1/a.png", "https://example.com/a.png", "file:///etc/passwd", "ftp://a/b", "gopher://a", "FILE:///a",
    "data:image/png,abc", "data:image/png;base64,@@@", "data:image/png;base64", "/etc/passwd", "../a.png", "\0",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_fetched_or_read_for_a_request(address: str) -> None:
    part = {"type": "image_url", "image_url": {"url": address}}
    with pytest.raises(ValueError, match=r"^image 1: ") as refused:
        sources.taken([{"role": "user", "content": [part]}], local=False)
    assert "passwd" not in str(refused.value)


def test_parts_of_messages() -> None:
    for part, said in (
        ({"type": "image"}, "there is none in its part"),
        ({"type": "video", "video": "a.mp4"}, "no such file or folder"),
        ({"type": "input_audio", "input_audio": {"data": "???"}}, "base64 is broken"),
        ({"type": "image", "image": "/nowhere.png"}, "no such file"),
        ({"type": "image", "image": "a" * 5000}, "name too long"),
        ({"type": "image", "image": "/dev/zero"}, "expected a file"),
        ({"type": "image", "image": "/"}, "expected a file"),
        ({"type": "image", "image": saved("PNG"), "max_pixels": 5}, "image 1: 'max_pixels' of its part is not read"),
        ({"type": "image", "image": saved("PNG"), "url": "https://a"}, "image 1: its part has 2 of them"),
        ({"type": "image", "image": {"url": "data:a;base64,aGk=", "data": "aGk="}}, "image 1: its part has 2 of them"),
    ):
        with pytest.raises(ValueError, match=said):
            sources.taken([{"role": "user", "content": [part]}])


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 1000)
    (tmp_path / "a.png").write_bytes(b"x" * 1001)
    for value in (tmp_path / "a.png", b"x" * 1001, "data:image/png;base64," + base64.b64encode(b"x" * 1010).decode()):
        with pytest.raises(ValueError, match=r"1,00\d|1,000"):
            sources.source("image", value, "one")


SOUNDS = {
    "nothing": b"",
    "a text": b"RIFF a text",
    "another format": b".snd" + struct.pack(">IIIII", 24, 4, 3, 16000, 1) + b"\0" * 4,
    "a header that lies": wav(rate=0),
    "too many channels": wav(channels=900),
    "a rate that nobody has": wav(rate=2_000_000),
    "no samples a second": wav(rate=1),
    "hours": wav(rate=1000, frames=601_000),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds(name: str) -> None:
    with pytest.raises(ValueError, match=r"^audio 1: ") as refused:
        sound.opened(sources.source("audio", SOUNDS[name], "audio 1"), HEARD)
    assert "\n" not in str(refused.value)


def test_a_sound_that_says_it_is_longer_than_it_is() -> None:
    """Samples that are not there are not made room for."""
    assert len(sound.opened(sources.source("audio", wav(frames=300, said=2**31), "one"), HEARD)) <= 300


def test_samples() -> None:
    for value in (np.zeros((2, 2), np.float32), np.zeros(4, np.int16), np.array([1.0, np.nan]), 3, "x.wav/y"):
        with pytest.raises(ValueError, match=r"audio 1|x\.wav"):
            sound.opened(sources.source("audio", value, "audio 1"), HEARD)


@pytest.mark.parametrize("text", ["<|image_pad|>", "a<|image_pad|>b<|image_pad|>"])
def test_a_text_with_marks_of_its_own(text: str) -> None:
    """It would take the picture's place."""
    llm = loaded("qwen2_5_vl")
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": text}]
    with pytest.raises(ValueError, match="image: 1 given"):
        llm.completion(messages=[{"role": "user", "content": parts}])
    gemma = loaded("gemma3")
    parts[1] = {"type": "text", "text": "<image_soft_token>"}
    with pytest.raises(ValueError, match="no '<image_soft_token>' in a text"):
        gemma.completion(messages=[{"role": "user", "content": parts}])
    assert llm.completion(text).inserted is None  # tokens like any other


def test_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(BROKEN["a cut picture"])
    weights = str(loaded("qwen2_5_vl").folder)
    capsys.readouterr()
    assert generate.main(["--weights", weights, "--image", str(tmp_path / "a.png"), "--prompt", "Lily"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"minillm: error: {tmp_path}/a.png: no picture that can be read")
    assert err.count("\n") == 1
