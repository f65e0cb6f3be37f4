"""What a checkpoint's processor files say of pictures and sounds, in each of their spellings.

Published: preprocessor_config.json. transformers 5 writes one processor_config.json with a section for each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minillm.guard.files import is_there
from minillm.guard.jsonfile import read_json
from minillm.guard.screen import note, shown
from minillm.spec.media import Media, Patches, Spectrum

FILES = ("preprocessor_config.json", "processor_config.json")
OF_VIDEOS = "video_preprocessor_config.json"
MAX_AREA = 2**27  # pixels that a file may ask a picture to have
MAX_EDGE = 2**13
SECONDS = 30
BUDGETS = (70, 140, 280, 560, 1120)  # embeddings of a picture that towers were trained with


@dataclass(frozen=True)
class Crops:
    """A picture one of whose sides is at least `ratio` times the other is also seen in two to `most` parts along it, if
    these then have sides of at least `least` pixels."""

    least: int = 256
    most: int = 4
    ratio: float = 1.2


@dataclass(frozen=True)
class Settings:
    """Of pictures: `block` is the side that sizes are multiples of; `least` and `most` bound the area, or `most` the
    longer side; or all have the size `fixed`, height and width. Levels of 255 are multiplied by `scale`, then `mean` is
    taken off and `deviation` divides them, colour by colour. `crops`: when long pictures are seen in parts too."""

    sizing: str
    block: int
    least: int = 1
    most: int = 1
    fixed: tuple[int, int] = (1, 1)
    resample: int = 3
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    deviation: tuple[float, ...] = (0.5, 0.5, 0.5)
    crops: Crops | None = None

    def within(self, asked: int | None, default: int) -> Settings:
        """With no more pixels than were asked for, or than the `default` where nobody did."""
        if self.sizing != "area":
            if asked is not None:
                note(f"max_pixels {asked:,} without effect: this checkpoint brings pictures to sizes of its own")
            return self
        least = self.block**2
        if asked is not None and asked < least:
            raise ValueError(f"max_pixels is {asked:,}, one block of a picture has {least:,} pixels")
        most = self.most if asked is None and self.most <= default else min(asked or default, MAX_AREA)
        return replace(self, most=most, least=min(self.least, most))


@dataclass(frozen=True)
class Sounds:
    """Of sounds: samples a second, mel bands, samples of a window and between two windows, and seconds that are heard
    at most."""

    rate: int
    bands: int
    window: int
    hop: int
    seconds: int


@dataclass(frozen=True)
class Clips:
    """Of videos: frames are looked at `fps` times a second, from `least` to `most` of them, `group` of which are
    joined; each as `look` has it, whose bounds may be those of all frames together. `cap`: a frame has no more pixels
    than its part of what `tokens` embeddings show, or than so many show."""

    look: Settings
    fps: float
    least: int
    most: int
    group: int
    cap: bool
    tokens: int


def read(folder: Path, media: Media) -> Settings | Sounds:
    """The settings of a folder. Raises ValueError where there are none, or some that cannot be."""
    section = "image_processor" if media.kind == "image" else "feature_extractor"
    for name in FILES:
        if not is_there(folder / name):
            continue
        whole = read_json(folder / name)
        found = whole.get(section, whole if name == FILES[0] else None)
        if isinstance(found, Mapping):
            return of_pictures(found, media, name) if media.kind == "image" else of_sounds(found, media, name)
    raise ValueError(f"{folder}: no {' or '.join(FILES)}, which say how {media.kind}s are read; download it again")


def clips(folder: Path, media: Media) -> Clips:
    """What a folder says of videos, where it says nothing of them of pictures."""
    for name, section in (
        (FILES[1], "video_processor"),
        (OF_VIDEOS, None),
        (FILES[0], None),
        (FILES[1], "image_processor"),
    ):
        if is_there(folder / name):
            whole = read_json(folder / name)
            found = whole if section is None else whole.get(section)
            if isinstance(found, Mapping):
                return of_videos(found, media, name)
    raise ValueError(f"{folder}: no {OF_VIDEOS}, which says how videos are read; download it again")


def of_videos(values: Mapping[str, Any], media: Media, name: str) -> Clips:
    embed, video = media.encoder.embed, media.video
    assert isinstance(embed, Patches)
    assert video is not None
    common = _look(values, media, name)
    if common.resample not in (2, 3):
        raise ValueError(f"{name}: resample is {common.resample}; frames are resized bilinearly (2) or bicubically (3)")
    block = common.block**2
    if media.sizing == "budget":
        look = replace(common, most=_budget(values, media, name, video.tokens) * block)
    else:
        look = _bounded(common, values, name, (128 * block, 768 * block))
    keys = (("min_frames", 4), ("max_frames", 768))
    if video.sampling == "number":
        keys = (("min_frames", 2), ("num_frames", 32))
    least, most = (_whole(_or(values, key, usual), key, name, 10_000, 2) for key, usual in keys)
    if least > most:
        raise ValueError(f"{name}: {keys[0][0]} {least} is above {keys[1][0]} {most}")
    cap = _or(values, "cap_pixels_per_frame", True)
    if not isinstance(cap, bool):
        raise ValueError(f"{name}: cap_pixels_per_frame is {shown(cap)}, expected true or false")
    fps = _number(_or(values, "fps", 2), "fps", name, 0.001, 1000)
    tokens = _whole(_or(values, "max_video_tokens", video.tokens), "max_video_tokens", name, 2**24)
    return Clips(look, fps, least, most, embed.frames, cap, tokens)


def _or(values: Mapping[str, Any], key: str, usual: Any) -> Any:
    stated = values.get(key)
    return usual if stated is None else stated


def _look(values: Mapping[str, Any], media: Media, name: str) -> Settings:
    """What pictures and frames of videos have in common."""
    embed = media.encoder.embed
    assert isinstance(embed, Patches)
    for key, meant in (("patch_size", embed.side), ("merge_size", embed.merge), ("temporal_patch_size", embed.frames)):
        stated = values.get(key)
        stated = stated.get("height") if isinstance(stated, Mapping) else stated
        if stated not in (None, meant):
            note(f"{name}: {key} is {shown(stated)}, config.json says {meant}: the latter counts")
    itself = media.sizing == "budget"  # such towers want levels from -1 to 1, whatever the file says
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if values.get(key) not in (None, True) and not (itself and key == "do_normalize" and values[key] is False):
            raise ValueError(f"{name}: {key} is {shown(values[key])}; pictures are resized and normalised here")
    levels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if itself else values
    mean, deviation = (_colours(levels, key, name) for key in ("image_mean", "image_std"))
    scale = _number(values.get("rescale_factor", 1 / 255), "rescale_factor", name, 1e-6, 1.0)
    resample = _whole(values.get("resample", 3), "resample", name, 5, 0)
    return Settings(media.sizing, embed.side * embed.merge, 1, 1, (1, 1), resample, scale, mean, deviation)


def of_pictures(values: Mapping[str, Any], media: Media, name: str) -> Settings:
    embed, common = media.encoder.embed, _look(values, media, name)
    assert isinstance(embed, Patches)
    if values.get("do_pan_and_scan"):
        common = replace(common, crops=_crops(values, media, name))
    size = values.get("size") if isinstance(values.get("size"), Mapping) else {}
    assert isinstance(size, Mapping)
    if media.sizing == "fixed":
        table = media.encoder.table
        assert table is not None
        side = table.side * embed.side
        if stated := {key: size[key] for key in ("height", "width") if size.get(key) not in (None, side)}:
            raise ValueError(f"{name}: size is {shown(stated)}, the tower sees {side} x {side}")
        return replace(common, fixed=(side, side))
    if media.sizing == "budget":
        return replace(common, most=_budget(values, media, name) * common.block**2)
    if media.sizing == "edge":
        return replace(common, most=_whole(size.get("longest_edge"), "size.longest_edge", name, MAX_EDGE))
    return _bounded(common, values, name, (56 * 56, 28 * 28 * 1280))


def _crops(values: Mapping[str, Any], media: Media, name: str) -> Crops | None:
    if media.placeholder.crops is None:
        note(f"{name}: do_pan_and_scan without effect: pictures are seen whole")
        return None
    keys = [f"pan_and_scan_{key}" for key in ("min_crop_size", "max_num_crops", "min_ratio_to_activate")]
    least, most = (
        _whole(_or(values, key, usual), key, name, limit)
        for key, usual, limit in ((keys[0], Crops.least, MAX_EDGE), (keys[1], Crops.most, 64))
    )
    return Crops(least, most, _number(_or(values, keys[2], Crops.ratio), keys[2], name, 1.0, 1000))


def _budget(values: Mapping[str, Any], media: Media, name: str, usual: int = 280) -> int:
    """How many embeddings a picture has at most."""
    embed, table = media.encoder.embed, media.encoder.table
    assert isinstance(embed, Patches)
    assert table is not None
    if (stated := values.get("pooling_kernel_size")) not in (None, embed.merge):
        note(f"{name}: pooling_kernel_size is {shown(stated)}, config.json says {embed.merge}: the latter counts")
    tokens = _whole(_or(values, "max_soft_tokens", usual), "max_soft_tokens", name, table.side // embed.merge)
    if tokens not in BUDGETS:
        raise ValueError(f"{name}: max_soft_tokens is {tokens}, expected one of {', '.join(map(str, BUDGETS))}")
    return tokens


def _bounded(settings: Settings, values: Mapping[str, Any], name: str, usual: tuple[int, int]) -> Settings:
    """With the least and the most pixels."""
    size = values.get("size") if isinstance(values.get("size"), Mapping) else {}
    assert isinstance(size, Mapping)
    least, most = (
        _whole(_first(values, size, *keys), keys[0], name, MAX_AREA)
        for keys in (("min_pixels", "shortest_edge", usual[0]), ("max_pixels", "longest_edge", usual[1]))
    )
    if least > most:
        raise ValueError(f"{name}: min_pixels {least:,} is above max_pixels {most:,}")
    return replace(settings, least=least, most=most)


def _first(values: Mapping[str, Any], size: Mapping[str, Any], key: str, edge: str, default: int) -> Any:
    """An area, which one of three keys has."""
    stated = (values.get(key), size.get(key), size.get(edge))
    return next((each for each in stated if each is not None), default)


def of_sounds(values: Mapping[str, Any], media: Media, name: str) -> Sounds:
    embed = media.encoder.embed
    assert isinstance(embed, Spectrum)
    seconds = _whole(values.get("chunk_length", SECONDS), "chunk_length", name, 600)
    made = [("sampling_rate", 16000, 384_000), ("feature_size", 128, 4096), ("n_fft", 400, 2**16)]
    rate, bands, window = (_whole(values.get(key, usual), key, name, most) for key, usual, most in made)
    hop = _whole(values.get("hop_length", 160), "hop_length", name, window)
    if bands != embed.bands:
        raise ValueError(f"{name}: feature_size is {bands}, the tower hears {embed.bands} mel bands")
    if (frames := seconds * rate // hop) != 2 * embed.positions:
        raise ValueError(f"{name}: {seconds} seconds have {frames} frames, the tower hears {2 * embed.positions}")
    return Sounds(rate, bands, window, hop, seconds)


def _whole(value: Any, key: str, name: str, most: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}: {key} is {shown(value)}, expected a whole number from {least} to {most:,}")
    return value


def _number(value: Any, key: str, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name}: {key} is {shown(value)}, expected a number from {least:g} to {most:g}")
    return float(value)


def _colours(values: Mapping[str, Any], key: str, name: str) -> tuple[float, ...]:
    stated = values.get(key)
    if not isinstance(stated, list) or len(stated) != 3:
        raise ValueError(f"{name}: {key} is {shown(stated)}, expected a number for each of three colours")
    return tuple(_number(each, key, name, -1e3 if key == "image_mean" else 1e-3, 1e3) for each in stated)
