"""From a video to patches: which frames are looked at, the size that they are brought to, and where they stand in time.

PyTorch resizes the frames, bit for bit as transformers does, whose video processors need torchvision. It is another
resizer than that of pictures (`pictures.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minillm.media.pictures import by_area, by_budget
from minillm.media.settings import Clips
from minillm.media.video import Clip
from minillm.spec.media import Patches, Video


class Moving(NamedTuple):
    """Groups of frames, each of which is patches `[F, N, values]` of a grid of rows and columns; the text in front of
    each, where there is one, and its coordinate in time."""

    values: Tensor
    grid: tuple[int, int]
    stamps: tuple[str, ...]
    times: tuple[int, ...]


def sampled(count: int, rate: float, made: Clips, video: Video, asked: int | None = None) -> list[int]:
    """The numbers of the frames that are looked at, of so many at `rate` a second; no more than were `asked` for."""
    most = made.most if asked is None else min(made.most, asked)
    wanted = count / rate * made.fps
    if video.sampling == "number":
        chosen = min(most, count)
        return [index * count // chosen for index in range(chosen)]
    if video.sampling == "ends":
        chosen = min(max(int(wanted), made.least), most, count)
        return [int(each) for each in np.linspace(0, count - 1, chosen).round()]
    group = made.group
    most = min(most, count) // group * group
    chosen = math.floor(min(max(wanted, made.least), most) / group) * group
    # As it is rounded in the reference: single precision, cut off.
    return torch.arange(0, count, count / chosen).int().clamp(max=count - 1)[:chosen].tolist() if chosen else []


def size_of(
    count: int, height: int, width: int, made: Clips, video: Video, asked: int | None = None
) -> tuple[int, int]:
    """The height and width that `count` frames are brought to; of at most `asked` pixels each, where that is not None.
    With `cap` a long video has smaller frames, as in the code that came with the models (qwen-vl-utils)."""
    block, least, most = made.look.block, made.look.least, made.look.most
    if made.look.sizing == "budget":
        return by_budget(height, width, block, most if asked is None else min(most, asked))
    floor = int(least * 1.05)
    if video.bounds == "frame":
        if made.cap:
            most = max(min(most, int(made.tokens * block**2 * 0.9) * made.group // count), floor)
        most = most if asked is None else min(most, asked)
        return by_area(height, width, block, min(least, most), most)
    if made.cap:
        most = max(min(made.tokens * block**2, most // count), floor) * count
    most = most if asked is None else min(most, asked * count)
    return by_volume(count, height, width, made, min(least, most), most)


def by_volume(count: int, height: int, width: int, made: Clips, least: int, most: int) -> tuple[int, int]:
    """Sides that are multiples of a block, with bounds on the pixels of all frames together."""
    block, group = made.look.block, made.group
    if height < block or width < block:
        scale = max(block / height, block / width)
        height, width = int(height * scale), int(width * scale)
    high, wide = round(height / block) * block, round(width / block) * block
    whole = round(count / group) * group * high * wide
    if whole > most:
        factor = math.sqrt(count * height * width / most)
        high, wide = (max(block, math.floor(side / factor / block) * block) for side in (height, width))
    elif whole < least:
        factor = math.sqrt(least / (count * height * width))
        high, wide = (math.ceil(side * factor / block) * block for side in (height, width))
    return high, wide


def looked_at(
    clip: Clip, made: Clips, video: Video, embed: Patches, within: Callable[[int], None],
    frames: int | None = None, pixels: int | None = None,
) -> Moving:  # fmt: skip
    """A clip as the tower takes it, of at most so many frames of so many pixels. `within` is told the number of its
    embeddings before any frame is decoded."""
    chosen = sampled(clip.count, clip.rate, made, video, frames)
    if len(chosen) < made.group:
        raise ValueError(f"{clip.name}: {len(chosen)} frames are looked at, {made.group} are needed; give more")
    high, wide = size_of(len(chosen), clip.height, clip.width, made, video, pixels)
    grid, groups = (high // embed.side, wide // embed.side), -(-len(chosen) // made.group)
    within(groups * grid[0] * grid[1] // embed.merge**2)
    levels = torch.stack([resized(each, (high, wide), made.look.resample) for each in clip.frames(chosen)])
    values = patches(normalised(levels, made), embed.side, embed.merge, made.group)
    if video.stamps is not None:
        return Moving(values, grid, stamped(chosen, clip.rate, made.group, video.stamps), (0,) * groups)
    seconds = made.group / (len(chosen) / clip.count * clip.rate)
    step = 1.0 if video.per_second is None else video.per_second * torch.tensor(seconds)
    return Moving(values, grid, (), tuple((torch.arange(groups) * step).long().tolist()))


def stamped(chosen: list[int], rate: float, group: int, how: str) -> tuple[str, ...]:
    """The time of each group of these frames in words: that between its first frame and its last, which stands for
    those that it lacks."""
    chosen = chosen + chosen[-1:] * (-len(chosen) % group)
    ends = zip(chosen[::group], chosen[group - 1 :: group], strict=True)
    times = [(one / rate + other / rate) / 2 for one, other in ends]
    if how == "seconds":
        return tuple(f"<{time:.1f} seconds>" for time in times)
    return tuple(f"{' ' if index else ''}{int(time // 60):02}:{int(time % 60):02} " for index, time in enumerate(times))


def resized(frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], size: tuple[int, int], resample: int) -> Tensor:
    """Uint8 `[3, height, width]`."""
    levels = torch.from_numpy(np.array(frame)).permute(2, 0, 1)
    if levels.shape[1:] == size:
        return levels
    mode = {2: "bilinear", 3: "bicubic"}[resample]
    return F.interpolate(levels[None].contiguous(), size=size, mode=mode, antialias=True)[0]


def normalised(levels: Tensor, made: Clips) -> Tensor:
    """fp32 of uint8 `[frames, 3, height, width]`: less the mean, over the deviation of each colour, both in levels."""
    mean, deviation = (
        (torch.tensor(each) * (1.0 / made.look.scale))[:, None, None] for each in (made.look.mean, made.look.deviation)
    )
    return levels.float().sub_(mean).div_(deviation)


def patches(frames: Tensor, side: int, merge: int, group: int) -> Tensor:
    """Of frames `[n, 3, height, width]` the patches `[F, N, 3 group side²]`, the last frame as often as a group lacks
    one, in the order of `turning.places`."""
    if lacking := -len(frames) % group:
        frames = torch.cat((frames, frames[-1:].expand(lacking, -1, -1, -1)))
    cut = "(f t) c (r p y) (q s x) -> f (r q p s) (c t y x)"
    return rearrange(frames, cut, t=group, p=merge, s=merge, y=side, x=side)
