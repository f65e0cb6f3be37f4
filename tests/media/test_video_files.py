"""What a video may come as: a file, an animated picture, a folder or list of pictures, an array, a data: address; and
what is refused in one line before it takes time or memory."""

from __future__ import annotations

import argparse
import base64
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minillm import generate
from minillm.media import flags, frames, pictures, settings, sources, video
from tests.conftest import shared
from tests.media import record_videos
from tests.media.recorded import greedy, loaded
from tests.media.test_hostile import png, saved

av: Any = pytest.importorskip("av", reason="PyAV decodes the files that are read here: pip install -e '.[video]'")

SIZE, COUNT = (48, 64), 12


def moving(count: int = COUNT) -> np.ndarray[Any, Any]:
    """A square that goes to the right on a plain ground, uint8 `[count, 48, 64, 3]`."""
    made = np.full((count, *SIZE, 3), (40, 80, 160), np.uint8)
    for index in range(count):
        made[index, 10:30, 4 * index : 4 * index + 16] = (250, 200, 20)
    return made


def coded(kind: str = "mp4", codec: str = "libx264", rate: int = 6, turned: int = 0) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        for each in moving():
            for packet in stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


def animated(kind: str, **options: Any) -> bytes:
    buffer, pictures = io.BytesIO(), [Image.fromarray(each) for each in moving()]
    pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:], duration=250, **options)
    return buffer.getvalue()


def clip(value: Any, **options: Any) -> video.Clip:
    return video.opened(sources.source("video", value, "video 1", **options))


@pytest.mark.parametrize(
    ("kind", "codec"), [("mp4", "libx264"), ("mov", "mpeg4"), ("matroska", "libx264"), ("avi", "mpeg4")]
)
def test_files(kind: str, codec: str, tmp_path: Path) -> None:
    """Count and rate as they were written; frames as PyAV itself decodes them, from bytes and from a path."""
    data = coded(kind, codec)
    (tmp_path / "film").write_bytes(data)
    with av.open(io.BytesIO(data)) as container:
        wanted = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(wanted) == COUNT
    for value in (data, tmp_path / "film"):
        made = clip(value)
        assert (made.count, made.rate, made.height, made.width) == (COUNT, 6.0, *SIZE)
        chosen = list(made.frames([0, 3, 7, 11]))
        assert all(np.array_equal(one, wanted[index]) for one, index in zip(chosen, (0, 3, 7, 11), strict=True))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_pictures(kind: str) -> None:
    made = clip(animated(kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (made.count, made.rate, made.height, made.width) == (COUNT, 4.0, *SIZE)
    found = list(made.frames([1, 10]))
    assert np.abs(np.stack(found).astype(int) - moving()[[1, 10]]).max() <= (8 if kind == "GIF" else 0)


def test_one_video_in_every_form(tmp_path: Path) -> None:
    """An array, pictures, their bytes, a folder of them, a data: address: the same tokens and embeddings."""
    llm, pixels, pictures = loaded("qwen3_vl"), moving(), []
    (tmp_path / "frames").mkdir()
    for index, each in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(each).save(buffer, "PNG")
        (tmp_path / "frames" / f"{index:03}.png").write_bytes(buffer.getvalue())
        pictures.append(buffer.getvalue())
    (tmp_path / "frames" / ".hidden").write_text("no picture")
    address = "data:video/jpeg;base64," + ",".join(base64.b64encode(each).decode() for each in pictures)
    lossless = animated("WEBP", lossless=True)
    forms: list[dict[str, Any]] = [
        {"type": "video", "video": pixels, "fps": 4},
        {"type": "video", "video": [Image.fromarray(each) for each in pixels], "fps": 4.0},
        {"type": "video", "video": pictures, "fps": 4},
        {"type": "video", "video": tmp_path / "frames", "fps": 4},
        {"type": "video_url", "video_url": {"url": address}, "fps": 4},
        {"type": "video", "video": lossless},
        {"type": "video", "video": "data:image/webp;base64," + base64.b64encode(lossless).decode()},
    ]
    text = {"type": "text", "text": "Lily"}
    made = [llm.prompts.conversation([{"role": "user", "content": [part, text]}]) for part in forms]
    assert all(each.ids == made[0].ids for each in made)
    assert all(each.inserted.digest == made[0].inserted.digest for each in made if each.inserted and made[0].inserted)
    short = greedy(llm, 2, prompt="Lily", videos=[{"video": pixels, "fps": 4}])
    assert short.prompt == made[0].ids
    fewer = greedy(llm, 2, prompt="Lily", videos=[{"video": pixels, "fps": 4, "max_frames": 4}])
    smaller = greedy(llm, 2, prompt="Lily", videos=[{"video": pixels, "fps": 4}], max_pixels=32 * 32)
    assert len(fewer.prompt) < len(short.prompt) > len(smaller.prompt)
    _, at_home = sources.taken([{"role": "user", "content": [forms[4]]}], local=False)  # as the server takes it
    assert llm.prompts.reader.seen(at_home[0]).digest == llm.prompts.reader.seen(at_home[0]).digest


def test_a_picture_and_a_video_in_one_prompt() -> None:
    llm, picture = loaded("qwen2_5_vl"), moving()[0]
    parts = [{"type": "image", "image": picture}, {"type": "video", "video": moving(), "fps": 4}]
    made = [
        llm.prompts.conversation([{"role": "user", "content": [*each, {"type": "text", "text": "Lily"}]}])
        for each in (parts, parts[::-1])
    ]
    for prompt, first in zip(made, (518, 519), strict=True):  # of pictures, of videos
        assert next(token for token in prompt.ids if token in (518, 519)) == first
        assert prompt.inserted is not None
        assert [token for token in prompt.ids if token in (518, 519)] == [prompt.ids[at] for at in prompt.inserted.at]
    marked = llm.completion(
        "Lily<|video_pad|>saw<|image_pad|>", images=[picture], videos=[{"video": moving(), "fps": 4}]
    )
    assert marked.prompt.index(519) < marked.prompt.index(518)
    with pytest.raises(ValueError, match=r"video: 1 given, 0 places '<\|video_pad\|>'"):
        llm.completion("Lily<|image_pad|>saw", images=[picture], videos=[moving()])


def test_a_header_that_promises_more() -> None:
    """A last frame stands for those that are not there."""
    made = clip(coded())
    found = list(made.frames([0, 11, 13, 15]))
    assert len(found) == 4
    assert np.array_equal(found[1], found[3])
    with pytest.raises(ValueError, match="its header says that there is frame 101, and there are 12"):
        list(made.frames([0, 100]))


def test_frames_larger_than_the_header_says(monkeypatch: pytest.MonkeyPatch) -> None:
    made = clip(coded())
    monkeypatch.setattr(pictures, "MAX_PIXELS", SIZE[0] * SIZE[1] - 1)
    with pytest.raises(ValueError, match="video 1: 64 x 48 pixels, the limit is 3,071"):
        list(made.frames([0]))


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    (tmp_path / "film.mp4").write_bytes(coded())
    monkeypatch.setattr(video, "open", broken, raising=False)
    with pytest.raises(ValueError, match=r"film\.mp4: no video that can be read"):
        clip(tmp_path / "film.mp4")


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (b"", {}, "no video that can be read"),
    (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", {}, "no video that can be read"),
    (b"ffconcat version 1.0\nfile /etc/passwd\n", {}, "no video that can be read"),
    (b"\0\0\0\x18ftypmp42" + b"\0" * 200, {}, "no video that can be read"),
    (saved("GIF"), {}, "1 frames, a video has two at least"),
    (png(30_000, 30_000), {}, "more pixels than the 64,000,000"),
    (np.zeros((3, 4, 4), np.uint8), {}, "expected uint8 \\[frames, height, width, 3\\]"),
    (np.zeros((3, 4, 4, 3), np.float32), {}, "an array of float32"),
    (np.zeros((3, 1, 400, 3), np.uint8), {}, "one side over 200 times the other"),
    (np.zeros((1, 40, 40, 3), np.uint8), {}, "1 frames, a video has two"),
    ([], {}, "there is no frame in it"),
    ([moving()[0], moving()[0][:40]], {}, "frame 2: 64 x 40 pixels, the first has 64 x 48"),
    ([b"no picture", b"none"], {}, "frame 1: no picture that can be read"),
    (np.zeros((3000, 4, 4, 3), np.uint8), {"fps": 0.1}, "30,000 seconds, the limit is 7,200"),
    (np.zeros((3, 4, 4, 3), np.uint8), {"fps": 0}, "fps is 0"),
    (np.zeros((3, 4, 4, 3), np.uint8), {"max_frames": 1}, "max_frames is 1"),
    (animated("GIF"), {"fps": 3}, "fps goes with frames that are given one by one"),
    (3, {}, "a int, expected a path"),
    ("data:video/mp4,abc", {}, "that is not base64"),
    ("https://example.com/a.mp4", {}, "an address, and none is fetched"),
    ("/nowhere.mp4", {}, "no such file or folder"),
    ("/dev/zero", {}, "a device, expected a file"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "options", "said"), REFUSED, ids=lambda each: str(each)[:30])
def test_what_is_refused(value: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        for _ in (made := clip(value, **options)).frames(range(made.count)):
            pass
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cut", [40, 400, 2000])
def test_cut_files(cut: int) -> None:
    for data in (coded()[:cut], coded("matroska")[:cut], animated("GIF")[:cut]):
        try:
            for _ in (made := clip(data)).frames(range(made.count)):
                pass
        except ValueError as error:
            assert str(error).startswith("video 1")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_ANIMATED", COUNT * SIZE[0] * SIZE[1] - 1)
    with pytest.raises(ValueError, match=r"12 frames of 64 x 48 pixels, the limits are"):
        clip(animated("WEBP"))
    monkeypatch.setattr(sources, "MAX_FRAMES", 11)
    for given in ([*moving()], "data:video/jpeg;base64," + "," * 11):
        with pytest.raises(ValueError, match=r"12 frames, the limit is 11"):
            clip(given)
    (tmp_path / "film.mp4").write_bytes(coded())
    monkeypatch.setattr(sources, "MAX_VIDEO_BYTES", 10)
    with pytest.raises(ValueError, match=r"film\.mp4: [\d,]+ bytes, the limit is 10"):
        clip(tmp_path / "film.mp4")


def test_a_request_gives_frames_alone(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(coded())
    encoded = base64.b64encode(coded()).decode()
    for value in (
        str(tmp_path / "film.mp4"), str(tmp_path), f"data:video/mp4;base64,{encoded}", ["/etc/passwd", "/etc/passwd"],
        f"data:image/gif;base64,{encoded}",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^video 1: ") as refused:
            sources.taken([{"role": "user", "content": [{"type": "video", "video": value}]}], local=False)
        assert "passwd" not in str(refused.value)


def test_without_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install; animated pictures need none."""
    data = coded()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"files of videos need PyAV: pip install -e '\.\[video\]'"):
        clip(data)
    assert clip(animated("GIF")).count == COUNT


def test_too_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded of a video that the context has no room for."""
    reader, decoded = loaded("qwen3_vl").prompts.reader, []
    monkeypatch.setattr(reader, "context", 6)
    monkeypatch.setattr(frames, "resized", lambda *given: decoded.append(given))
    with pytest.raises(ValueError, match=r"video 1: its frames and what stands before them take \d+ tokens"):
        reader.seen(sources.source("video", moving(), "video 1"))
    assert decoded == []


def test_a_family_without_videos() -> None:
    with pytest.raises(ValueError, match="this checkpoint takes images, and no video"):
        loaded("gemma3").completion("Lily", videos=[moving()])


def test_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "film.gif").write_bytes(animated("GIF"))
    folder = str(shared("media/qwen2_vl"))
    asked = ["--weights", folder, "--prompt", "Lily", "--max-new-tokens", "2", "--dtype", "float32"]
    assert generate.main([*asked, "--video", str(tmp_path / "film.gif"), "--max-frames", "4"]) == 0
    capsys.readouterr()
    assert generate.main([*asked, "--fps", "3"]) == 2
    assert "--fps goes with --video" in capsys.readouterr().err
    shown = flags.Shown(
        argparse.Namespace(image=None, audio=None, video=None, fps=None, max_frames=None, max_pixels=None)
    )
    assert shown.takes(f"/video {tmp_path / 'film.gif'}\n")
    assert shown.turn("Lily")["content"][0]["type"] == "video"


PROCESSORS: list[tuple[dict[str, Any], str]] = [
    ({"fps": 0}, "fps is 0"),
    ({"min_frames": 9, "max_frames": 8}, "min_frames 9 is above max_frames 8"),
    ({"cap_pixels_per_frame": 1}, "cap_pixels_per_frame is 1"),
    ({"resample": 1}, "resample is 1; frames are resized"),
    ({"max_video_tokens": 0}, "max_video_tokens is 0"),
]


@pytest.mark.parametrize(("changes", "said"), PROCESSORS, ids=lambda each: str(each)[:30])
def test_a_processor(changes: dict[str, Any], said: str) -> None:
    media = loaded("qwen2_vl").prompts.reader.media
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    with pytest.raises(ValueError, match=said):
        settings.of_videos({**colours, **changes}, media, "a.json")
    made = settings.of_videos(colours, media, "a.json")
    assert (made.fps, made.least, made.most, made.cap, made.tokens) == (2.0, 4, 768, True, 128_000)
    assert made.least < record_videos.FRAMES
