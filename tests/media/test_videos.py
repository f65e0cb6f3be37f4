"""Videos against transformers: recorded outputs of its processors and of three checkpoints, and random models whose
places and logits are computed here; what comes as a file, an animated picture, a folder or frames by themselves."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import minillm
from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from minillm.media import frames, prompts, settings, sources
from minillm.media.prompts import Reader, Seen, _digest
from minillm.spec.media import Placeholder, Video
from tests.media import models, record_videos
from tests.media.recorded import greedy, loaded, run

NEAR = 1e-4  # as in test_recorded.py


@functools.cache
def recorded() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((record_videos.HERE / "choices.json").read_text()), load_file(
        record_videos.HERE / "prompts.safetensors"
    )


def wanted(name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): each for key, each in recorded()[1].items() if key.startswith(f"{name}.")}


def spec_of(kind: str) -> Video:
    made = loaded(kind).prompts.reader.media.video
    assert made is not None
    return made


def test_frames_and_sizes() -> None:
    """Of random videos, as transformers' processors choose them."""
    for each in recorded()[0]["choices"]:
        block = 28 if each["kind"] == "qwen2_vl" else 32
        look = settings.Settings("area", block, 128 * block**2, 768 * block**2)
        given = (each["fps"], each["min_frames"], each["max_frames"], 2, each["cap_pixels_per_frame"])
        made = settings.Clips(look, *given, each["max_video_tokens"])
        chosen = frames.sampled(each["count"], each["rate"], made, spec_of(each["kind"]))
        assert (len(chosen), chosen[:: record_videos.STEP]) == (each["number"], each["indices"]), each
        size = frames.size_of(len(chosen), each["height"], each["width"], made, spec_of(each["kind"]))
        assert size == tuple(each["size"]), each


@pytest.mark.parametrize("budget", [2048, 7])
@pytest.mark.parametrize("name", record_videos.CHECKPOINTS)
def test_a_prompt(name: str, budget: int) -> None:
    """Text, ids, patches, places, logits and greedy text, read at once and in pieces."""
    llm, theirs = loaded(name), wanted(name)
    asked = record_videos.messages(record_videos.video())
    taken, found = sources.taken(asked)
    assert llm.chat_template().render(taken) == recorded()[0]["texts"][name]
    seen = llm.prompts.reader.seen(found[0])
    assert (len(seen.times), *seen.grid) == tuple(theirs["grid"].tolist())  # type: ignore[misc]
    assert (seen.values.flatten(0, 1)[:: record_videos.STEP] - theirs["patches"]).abs().max() <= 1e-6
    row = greedy(llm, 12, messages=asked)
    assert row.prompt == theirs["ids"].tolist()
    assert row.inserted is not None
    axes = llm.prompts.reader.media.axes
    assert axes is not None
    assert torch.equal(row.inserted.places, theirs["places"][list(axes)].T)
    assert row.inserted.shift == int(theirs["shift"])
    (logits,) = run(llm, [row], budget)
    assert (logits - theirs["logits"]).abs().max() <= NEAR
    assert row.token_ids == theirs["greedy"].tolist()


FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]
VIDEO_TOKEN = 91


def moving(media: Any, count: int, size: tuple[int, int], times: tuple[int, ...]) -> Seen:
    """Random frames as the tower takes them."""
    embed, stamped = media.encoder.embed, media.video.stamps
    levels = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))
    values = frames.patches(levels, embed.side, embed.merge, embed.frames)
    grid = (size[0] // embed.side, size[1] // embed.side)
    shape = (grid[0] // embed.merge, grid[1] // embed.merge)
    stamps = tuple(f"<{each}>" for each in times) if stamped else ()
    return Seen(values, shape, grid, 0, _digest(values, grid), "video", times, stamps)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "seconds"), [*((name, 0.4) for name in FAMILIES), ("qwen2_5_vl", 0.75)], ids=lambda each: str(each)
)
def test_random_models(name: str, seconds: float, tmp_path: Path) -> None:
    """Every parameter random: a video of five frames and a picture in one prompt, places and logits. Of Qwen2.5-VL the
    video is also so long that the text behind it stands elsewhere in transformers (`models.behind_the_latest`)."""
    theirs = models.build(tmp_path, name)
    media, tower = models.ours(tmp_path)
    assert media.video is not None
    assert media.axes is not None
    per_second = media.video.per_second
    times = (0, 1, 2) if per_second is None else tuple(int(each * per_second * seconds) for each in range(3))
    clip = moving(media, 5, (24, 16), (0, 0, 0) if media.video.stamps else times)
    _, (picture,) = models.seen(media, [(16, 24)])
    text = [tokens.tolist() for tokens in models.tiny.tokens(90, 3, 6)]
    group = [VIDEO_TOKEN] * (clip.shape[0] * clip.shape[1])
    of_video = [token for _ in clip.stamps for token in (5, 6, *group, 7)] or group * 3
    ids = text[0] + of_video + text[1] + [models.TOKEN] * picture.count + text[2]
    at = [index for index, token in enumerate(ids) if token in (VIDEO_TOKEN, models.TOKEN)]
    inserted = models.reader(media, tower).inserted([clip, picture], at, len(ids))
    kinds = torch.tensor([[{VIDEO_TOKEN: 2, models.TOKEN: 1}.get(token, 0) for token in ids]])
    assert picture.grid is not None
    assert clip.grid is not None
    grids = {
        "image_grid_thw": torch.tensor([[1, *picture.grid]]), "video_grid_thw": torch.tensor([[3, *clip.grid]]),
        "mm_token_type_ids": kinds, **({"second_per_grid_ts": torch.tensor([seconds])} if per_second else {}),
    }  # fmt: skip
    their_places, their_shift = theirs.model.get_rope_index(torch.tensor([ids]), **grids)
    places, shift = models.behind_the_latest(their_places[:, 0], kinds[0])
    assert torch.equal(places, their_places[:, 0]) == (seconds == 0.4)
    assert torch.equal(inserted.places, places[list(media.axes)].T)
    assert inserted.shift == shift
    assert (shift == int(their_shift)) == (seconds == 0.4)
    row = Completion(ids, Sampling(temperature=0), 3, inserted=inserted)
    (logits,) = run(minillm.load(tmp_path), [row], 16)
    pixels = {"pixel_values_videos": clip.values.flatten(0, 1), "pixel_values": picture.values[0]}
    made = theirs(input_ids=torch.tensor([ids]), **pixels, **grids, position_ids=places[:, None])
    assert (logits - made.logits[0]).abs().max() <= 2e-5


def of_spec(**changes: Any) -> Callable[[Reader], None]:
    def change(reader: Reader) -> None:
        assert reader.media.video is not None
        reader.media = replace(reader.media, video=replace(reader.media.video, **changes))

    return change


def of_settings(look: dict[str, Any] | None = None, **changes: Any) -> Callable[[Reader], None]:
    def change(reader: Reader) -> None:
        assert reader.clips is not None
        made = reader.clips()
        made = replace(made, look=replace(made.look, **(look or {})), **changes)
        reader.clips = lambda: made

    return change


MISTAKES: list[tuple[str, str, Callable[[Reader], None]]] = [
    ("qwen2_5_vl", "groups counted instead of seconds", of_spec(per_second=None)),
    ("qwen2_5_vl", "another step", of_spec(per_second=3.0)),
    ("qwen2_5_vl", "sampled to the last frame", of_spec(sampling="ends")),
    ("qwen2_5_vl", "bilinear", of_settings({"resample": 2})),
    ("qwen2_vl", "four frames at most", of_settings(most=4)),
    ("qwen2_vl", "three a second", of_settings(fps=3.0)),
    ("qwen3_vl", "no times in the text", of_spec(stamps=None)),
    ("qwen3_vl", "sampled at equal steps", of_spec(sampling="steps")),
    ("qwen3_vl", "times of a clock", of_spec(stamps="clock")),
    ("qwen3_vl", "no marks around groups", of_spec(placeholder=Placeholder("<|video_pad|>", "<|video_pad|>"))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mistake", "change"), MISTAKES, ids=lambda each: each if isinstance(each, str) else "-"
)
def test_mistakes(name: str, mistake: str, change: Callable[[Reader], None]) -> None:
    """The test of the tests: ids, patches or places are others than recorded."""
    right, theirs = loaded(name).prompts.reader, wanted(name)
    other = Reader(right.media, right.tower, right.settings, right.tokenizer, right.context, right.clips)
    change(other)
    other.placed_by["video"] = other.media.video.placeholder  # type: ignore[union-attr]
    assert seen_as(other, name, theirs) != seen_as(right, name, theirs) == [True] * 3


def seen_as(reader: Reader, name: str, theirs: dict[str, torch.Tensor]) -> list[bool]:
    """Whether ids, patches and places are those that were recorded."""
    _, found = sources.taken(record_videos.messages(record_videos.video()))
    prompt = reader.prompt(recorded()[0]["texts"][name], found, special=False)
    patches = reader.seen(found[0]).values.flatten(0, 1)[:: record_videos.STEP]
    axes, inserted = reader.media.axes, prompt.inserted
    assert axes is not None
    assert inserted is not None
    return [
        prompt.ids == theirs["ids"].tolist(),
        patches.shape == theirs["patches"].shape and bool((patches - theirs["patches"]).abs().max() <= 1e-6),
        torch.equal(inserted.places, theirs["places"][list(axes)].T),
    ]


def test_groups_through_the_tower_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long video goes through the tower in parts, and what is kept of it is bounded."""
    reader = loaded("qwen3_vl").prompts.reader
    _, found = sources.taken(record_videos.messages(record_videos.video()))
    seen = reader.seen(found[0])
    whole = reader.read(seen)
    reader._kept.clear()
    monkeypatch.setattr(prompts, "AT_ONCE", 1)
    monkeypatch.setattr(prompts, "KEPT_BYTES", 100)
    passes: list[int] = []
    usual = reader.tower.of_picture
    monkeypatch.setattr(reader.tower, "of_picture", lambda x, grid: passes.append(len(x)) or usual(x, grid))
    parts = reader.read(seen)
    assert passes == [1] * len(seen.times)
    assert not reader._kept
    for one, other in zip((*whole[:2], *whole.deep), (*parts[:2], *parts.deep), strict=True):
        assert (one - other).abs().max() <= 2e-5
