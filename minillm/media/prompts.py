"""Text, pictures, videos and sounds put together: ids with a placeholder for each embedding, and the embeddings.

One function counts placeholders and makes embeddings, so that the two cannot differ. A text that has a placeholder of
its own is refused: it would take a picture's place.

Shapes: n embeddings, E hidden size of the decoder.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from minillm.engine.completion import Prompt
from minillm.engine.graphs import RECORDING
from minillm.engine.inserted import Inserted, Span
from minillm.guard.screen import note
from minillm.media import frames, pictures, sound, video
from minillm.media.places import Run, coordinates
from minillm.media.settings import Clips, Settings, Sounds
from minillm.media.sources import SEVERAL, Kind, Source
from minillm.model.tower.tower import Read, Tower
from minillm.spec.media import Media, Patches, Placeholder
from minillm.text.tokenizer import Tokenizer

KEPT = 8  # pictures whose embeddings are kept, for the next turns of a conversation
KEPT_BYTES = 2**29
AT_ONCE = 2**14  # patches of a video that go through the tower together


@dataclass(frozen=True)
class Seen:
    """A picture, video or sound as the tower takes it: patches with their grid, or a spectrogram of which so many
    frames have sound; rows and columns of embeddings, of a sound one row; and the SHA-256 of all this. Of a video, or a
    picture with its parts, there are so many for each of its `times`, and there may be `stamps`, text in front of
    each."""

    values: Tensor
    shape: tuple[int, int]
    grid: tuple[int, int] | None
    heard: int
    digest: bytes
    kind: Kind = "image"
    times: tuple[int, ...] = (0,)
    stamps: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Embeddings."""
        return len(self.times) * self.shape[0] * self.shape[1]

    @property
    def groups(self) -> list[tuple[int, bytes]]:
        """The embeddings, and the SHA-256, of each part that text stands in front of, or of all."""
        if len(self.stamps) < 2:
            return [(self.count, self.digest)]
        size = self.shape[0] * self.shape[1]
        return [
            (size, hashlib.sha256(self.digest + index.to_bytes(4, "big")).digest()) for index in range(len(self.stamps))
        ]


class Reader:
    """What makes prompts of texts with pictures, for one loaded tower."""

    def __init__(
        self, media: Media, tower: Tower, settings: Settings | Sounds, tokenizer: Tokenizer, context: int,
        clips: Callable[[], Clips] | None = None,
    ):  # fmt: skip
        self.media, self.tower, self.settings, self.context = media, tower, settings, context
        self.tokenizer, self.clips = tokenizer, clips
        self.placed_by: dict[Kind, Placeholder] = {media.kind: media.placeholder}
        if media.video is not None:
            self.placed_by["video"] = media.video.placeholder
        self.tokens: set[int] = set()
        for kind, made in [*self.placed_by.items()]:
            if (found := tokenizer.backend.id_of(made.token)) is not None:
                self.tokens.add(found)
            elif kind == "video":
                del self.placed_by[kind]
            else:
                said = f"the tokenizer has no token {made.token!r}, which stands for what is seen"
                raise ValueError(f"{said}; download it again")
        self._kept: OrderedDict[bytes, Read] = OrderedDict()
        self._lock = threading.Lock()

    def prompt(self, text: str, sources: Sequence[Source], special: bool, max_pixels: int | None = None) -> Prompt:
        """The ids of a text with a mark for each picture, in order, and what stands at their placeholders. `special`
        as in `Tokenizer.encode`. Raises ValueError for marks and pictures that are not as many, for what is no picture,
        and for more than the context has room for."""
        pieces, kinds = self._pieces(text, sources)
        waiting = {kind: iter([each for each in sources if each.kind == kind]) for kind in {*kinds}}
        seen: list[Seen] = []
        for kind in kinds:
            seen.append(self.seen(next(waiting[kind]), max_pixels, sum(each.count for each in seen)))
            self._within(sum(each.count for each in seen), f"{len(seen)} {kind}s")  # before more are decoded
        whole = "".join(f"{piece}{self.placed(each)}" for piece, each in zip(pieces, seen, strict=False)) + pieces[-1]
        self.tokenizer.refuse_too_long(whole, self.context)
        ids = self.tokenizer.encode(whole, special)
        at = [index for index, token in enumerate(ids) if token in self.tokens]
        if len(at) != (count := sum(each.count for each in seen)):
            named = " or ".join(repr(each.token) for each in self.placed_by.values())
            what = "".join(f" {SEVERAL[kind]}" for kind in dict.fromkeys(kinds))
            raise ValueError(f"the prompt has {len(at)} tokens {named} and its{what} {count}; leave it out")
        return Prompt(ids, self.inserted(seen, at, len(ids)))

    def take(self, sources: Sequence[Source]) -> None:
        """Raises ValueError for what this checkpoint does not see or hear."""
        takes = " and ".join(SEVERAL[kind] for kind in self.placed_by)
        if odd := [each for each in sources if each.kind not in self.placed_by]:
            raise ValueError(f"{odd[0].name}: this checkpoint takes {takes}, and no {odd[0].kind}; leave it out")

    def _pieces(self, text: str, sources: Sequence[Source]) -> tuple[list[str], list[Kind]]:
        """A text cut at its marks, and what kind each of these is of."""
        self.take(sources)
        for kind, made in self.placed_by.items():
            given, marks = sum(each.kind == kind for each in sources), text.count(made.mark)
            if given != marks or (made.mark != made.token and made.token in text):
                said = f"{kind}: {given} given, {marks} places {made.mark!r} for them in the prompt"
                raise ValueError(f"{said}; give as many of both, and no {made.token!r} in a text")
        kind_of = {made.mark: kind for kind, made in self.placed_by.items()}
        parts = re.split(f"({'|'.join(map(re.escape, kind_of))})", text)
        return parts[::2], [kind_of[mark] for mark in parts[1::2]]

    def _within(self, count: int, what: str) -> None:
        if count >= self.context:
            raise ValueError(
                f"{what} take {count:,} tokens, the context has {self.context:,}; give fewer, or smaller ones "
                "(--max-pixels)"
            )

    def marked(self, text: str) -> bool:
        """Whether a text says itself where pictures or sounds stand in it."""
        return any(made.mark in text for made in self.placed_by.values())

    def placed(self, seen: Seen) -> str:
        """What stands in a text in place of a mark."""
        made, (rows, columns) = self.placed_by[seen.kind], seen.shape
        group = made.before + made.between.join([made.token * columns] * rows) + made.after
        return "".join(f"{stamp}{group}" for stamp in seen.stamps or ("",) * len(seen.times))

    def seen(self, source: Source, max_pixels: int | None = None, before: int = 0) -> Seen:
        """A picture, video or sound decoded, and as the tower takes it; `before` embeddings stand in front of it."""
        if source.kind == "video":
            return self._of_video(source, max_pixels, before)
        return self._of_picture(source, max_pixels) if source.kind == "image" else self._of_sound(source, max_pixels)

    def _of_picture(self, source: Source, max_pixels: int | None) -> Seen:
        embed = self.media.encoder.embed
        assert isinstance(embed, Patches)
        assert isinstance(self.settings, Settings)
        image = pictures.opened(source)
        settings = self.settings.within(max_pixels, pictures.DEFAULT_MOST)
        picture = pictures.pixels(image, settings)
        high, wide = picture.shape[1:]
        if max_pixels is None and high * wide < min(image.width * image.height, self.settings.most) * 0.9:
            capped = self.settings.within(self.settings.most, 0) != settings and settings.sizing == "area"
            if capped:
                said = f"{source.name}: {image.width} x {image.height} brought to {wide} x {high}"
                note(f"{said}, as more takes long to read; --max-pixels (max_pixels) lets it have more")
        parts = pictures.cropped(image, settings.crops) if settings.crops else []
        seen = [picture, *(pictures.pixels(each, settings) for each in parts)]
        cut = [pictures.patches(each, embed.side, embed.merge, embed.frames) for each in seen]
        values, grid, stamps = torch.cat([each for each, _ in cut]), cut[0][1], tuple[str, ...]()
        if parts and (texts := self.media.placeholder.crops):
            stamps = (*texts[:2], *texts[2:] * (len(parts) - 1))
        shape = (grid[0] // embed.merge, grid[1] // embed.merge)
        return Seen(values, shape, grid, 0, _digest(values, grid), times=(0,) * len(seen), stamps=stamps)

    def _of_video(self, source: Source, max_pixels: int | None, before: int) -> Seen:
        embed = self.media.encoder.embed
        assert isinstance(embed, Patches)
        assert self.media.video is not None
        if self.clips is None:
            raise ValueError(f"{source.name}: nothing says how videos are read for this checkpoint; give pictures")
        clips, name = self.clips(), source.name
        if max_pixels is not None and max_pixels < clips.look.block**2:
            raise ValueError(f"max_pixels is {max_pixels:,}, one block of a frame has {clips.look.block**2:,} pixels")
        made = frames.looked_at(
            video.opened(source), clips, self.media.video, embed,
            lambda count: self._within(before + count, f"{name}: its frames and what stands before them"),
            source.max_frames, max_pixels,
        )  # fmt: skip
        shape = (made.grid[0] // embed.merge, made.grid[1] // embed.merge)
        digest = _digest(made.values, made.grid)
        return Seen(made.values, shape, made.grid, 0, digest, "video", made.times, made.stamps)

    def _of_sound(self, source: Source, max_pixels: int | None) -> Seen:
        assert isinstance(self.settings, Sounds)
        if max_pixels is not None:
            raise ValueError(f"{source.name}: max_pixels is of pictures, this is a sound; leave it out")
        samples = sound.opened(source, self.settings)
        values, heard = sound.spectrogram(samples, self.settings)
        count = ((heard - 1) // 2 + 1) // self.media.encoder.projector.gathered
        if not count:
            raise ValueError(f"{source.name}: too short to be heard; give {4 * self.settings.hop} samples at least")
        return Seen(values, (1, count), None, heard, _digest(values, (heard, 0)), "audio")

    def read(self, seen: Seen) -> Read:
        """What the tower makes of it; kept for those that ask again."""
        with self._lock, RECORDING:
            if (found := self._kept.pop(seen.digest, None)) is None:
                found = self._through(seen.values, seen)
            self._kept[seen.digest] = found
            while len(self._kept) > KEPT or sum(map(_size, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return found

    def _through(self, values: Tensor, seen: Seen) -> Read:
        place = next(self.tower.parameters()).device
        if seen.grid is None:
            return self.tower.of_sound(values.to(place), seen.heard)
        pieces = values.split(max(AT_ONCE // values.shape[1], 1))
        read = [self.tower.of_picture(each.to(place), seen.grid) for each in pieces]
        deep = tuple(torch.cat(each) for each in zip(*(one.deep for one in read), strict=True))
        return Read(torch.cat([one.states for one in read]), torch.cat([one.embeddings for one in read]), deep)

    def inserted(self, seen: Sequence[Seen], at: Sequence[int], length: int) -> Inserted:
        """Embeddings at the positions `at` of a prompt of so many tokens."""
        groups = [group for each in seen for group in each.groups]
        ends = [0, *accumulate(count for count, _ in groups)]
        spans = tuple(
            Span(at[first], at[last - 1] + 1, digest)
            for (_, digest), (first, last) in zip(groups, pairwise(ends), strict=True)
        )
        read = [self.read(each) for each in seen]
        places, shift = None, 0
        if self.media.axes is not None:
            coordinates_3T, shift = coordinates(_runs(seen, at, length))
            places = coordinates_3T[list(self.media.axes)].T.contiguous()
        deep = tuple(torch.cat(each) for each in zip(*(one.deep for one in read), strict=True))
        embeddings = torch.cat([one.embeddings for one in read])
        how = self.media.joint, self.media.windowed, self.media.told_as
        return Inserted(torch.tensor(at), embeddings, spans, deep, places, shift, *how)


def _size(read: Read) -> int:
    """In bytes."""
    return sum(each.nbytes for each in (read.states, read.embeddings, *read.deep))


def _runs(seen: Sequence[Seen], at: Sequence[int], length: int) -> list[Run]:
    """Text and embeddings in turn, of a prompt of so many tokens that has embeddings at the positions `at`; groups of
    frames that have text between them are runs by themselves."""
    runs, first, before = list[Run](), 0, 0
    for each in seen:
        groups = [(0,)] * len(each.times) if each.stamps else [each.times]
        for times in groups:
            size = len(times) * each.shape[0] * each.shape[1]
            runs += [at[first] - before, (*each.shape, times)]
            first, before = first + size, at[first + size - 1] + 1
    return [*runs, length - before]


def _digest(values: Tensor, shape: tuple[int, int]) -> bytes:
    made = hashlib.sha256(f"{[*values.shape]} {shape}".encode())
    made.update(values.contiguous().numpy().data)
    return made.digest()
