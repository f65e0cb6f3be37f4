"""Text, pictures and sounds put together: ids with a placeholder for each embedding, and the embeddings.

One function counts placeholders and makes embeddings, so that the two cannot differ. A text that has a placeholder of
its own is refused: it would take a picture's place.

Shapes: n embeddings, E hidden size of the decoder.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from minillm.engine.completion import Prompt
from minillm.engine.graphs import RECORDING
from minillm.engine.inserted import Inserted, Span
from minillm.guard.screen import note
from minillm.media import pictures, sound
from minillm.media.places import Run, coordinates
from minillm.media.settings import Settings, Sounds
from minillm.media.sources import Source
from minillm.model.tower.tower import Read, Tower
from minillm.spec.media import Media, Patches
from minillm.text.tokenizer import Tokenizer

KEPT = 8  # pictures whose embeddings are kept, for the next turns of a conversation


@dataclass(frozen=True)
class Seen:
    """A picture or sound as the tower takes it: patches with their grid, or a spectrogram of which so many frames have
    sound; rows and columns of embeddings, of a sound one row; and the SHA-256 of all this."""

    values: Tensor
    shape: tuple[int, int]
    grid: tuple[int, int] | None
    heard: int
    digest: bytes

    @property
    def count(self) -> int:
        """Embeddings."""
        return self.shape[0] * self.shape[1]


class Reader:
    """What makes prompts of texts with pictures, for one loaded tower."""

    def __init__(self, media: Media, tower: Tower, settings: Settings | Sounds, tokenizer: Tokenizer, context: int):
        self.media, self.tower, self.settings, self.context = media, tower, settings, context
        self.tokenizer, token = tokenizer, media.placeholder.token
        found = tokenizer.backend.id_of(token)
        if found is None:
            raise ValueError(f"the tokenizer has no token {token!r}, which stands for what is seen; download it again")
        self.token: int = found
        self._kept: OrderedDict[bytes, Read] = OrderedDict()
        self._lock = threading.Lock()

    def prompt(self, text: str, sources: Sequence[Source], special: bool, max_pixels: int | None = None) -> Prompt:
        """The ids of a text with a mark for each picture, in order, and what stands at their placeholders. `special`
        as in `Tokenizer.encode`. Raises ValueError for marks and pictures that are not as many, for what is no picture,
        and for more than the context has room for."""
        kind, made = self.media.kind, self.media.placeholder
        if odd := [each for each in sources if each.kind != kind]:
            raise ValueError(f"{odd[0].name}: this checkpoint takes {kind}s, and no {odd[0].kind}; leave it out")
        marks = text.count(made.mark)
        if marks != len(sources) or (made.mark != made.token and made.token in text):
            said = f"{kind}: {len(sources)} given, {marks} places {made.mark!r} for them in the prompt"
            raise ValueError(f"{said}; give as many of both, and no {made.token!r} in a text")
        seen, count = [], 0
        for each in sources:
            seen.append(self.seen(each, max_pixels))
            if (count := count + seen[-1].count) >= self.context:  # before more are decoded
                raise ValueError(
                    f"{len(seen)} {kind}s take {count:,} tokens, the context has {self.context:,}; give fewer, or "
                    "smaller ones (--max-pixels)"
                )
        pieces = text.split(made.mark)
        whole = "".join(f"{piece}{self.placed(each)}" for piece, each in zip(pieces, seen, strict=False)) + pieces[-1]
        self.tokenizer.refuse_too_long(whole, self.context)
        ids = self.tokenizer.encode(whole, special)
        at = [index for index, token in enumerate(ids) if token == self.token]
        if len(at) != count:
            raise ValueError(f"the prompt has {len(at)} tokens {made.token!r} and its {kind}s {count}; leave it out")
        return Prompt(ids, self.inserted(seen, at, len(ids)))

    def marked(self, text: str) -> bool:
        """Whether a text says itself where pictures or sounds stand in it."""
        return self.media.placeholder.mark in text

    def placed(self, seen: Seen) -> str:
        """What stands in a text in place of a mark."""
        made, (rows, columns) = self.media.placeholder, seen.shape
        return made.before + made.between.join([made.token * columns] * rows) + made.after

    def seen(self, source: Source, max_pixels: int | None = None) -> Seen:
        """A picture or sound decoded, and as the tower takes it."""
        embed = self.media.encoder.embed
        if isinstance(embed, Patches):
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
            values, grid = pictures.patches(picture, embed.side, embed.merge, embed.frames)
            shape = (grid[0] // embed.merge, grid[1] // embed.merge)
            return Seen(values, shape, grid, 0, _digest(values, grid))
        assert isinstance(self.settings, Sounds)
        if max_pixels is not None:
            raise ValueError(f"{source.name}: max_pixels is of pictures, this is a sound; leave it out")
        samples = sound.opened(source, self.settings)
        values, heard = sound.spectrogram(samples, self.settings)
        count = ((heard - 1) // 2 + 1) // self.media.encoder.projector.gathered
        if not count:
            raise ValueError(f"{source.name}: too short to be heard; give {4 * self.settings.hop} samples at least")
        return Seen(values, (1, count), None, heard, _digest(values, (heard, 0)))

    def read(self, seen: Seen) -> Read:
        """What the tower makes of it; kept for those that ask again."""
        with self._lock, RECORDING:
            if (found := self._kept.pop(seen.digest, None)) is None:
                place = next(self.tower.parameters()).device
                values = seen.values.to(place)
                tower = self.tower
                found = tower.of_sound(values, seen.heard) if seen.grid is None else tower.of_picture(values, seen.grid)
            self._kept[seen.digest] = found
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return found

    def inserted(self, seen: Sequence[Seen], at: Sequence[int], length: int) -> Inserted:
        """Embeddings at the positions `at` of a prompt of so many tokens."""
        ends = [0, *accumulate(each.count for each in seen)]
        spans = tuple(
            Span(at[first], at[last - 1] + 1, each.digest)
            for each, (first, last) in zip(seen, pairwise(ends), strict=True)
        )
        read = [self.read(each) for each in seen]
        places, shift = None, 0
        if self.media.axes is not None:
            runs: list[Run] = []
            for span, each, before in zip(spans, seen, (0, *(span.last for span in spans)), strict=False):
                runs += [span.first - before, each.shape]
            coordinates_3T, shift = coordinates([*runs, length - spans[-1].last])
            places = coordinates_3T[list(self.media.axes)].T.contiguous()
        deep = tuple(torch.cat(each) for each in zip(*(one.deep for one in read), strict=True))
        embeddings = torch.cat([one.embeddings for one in read])
        return Inserted(torch.tensor(at), embeddings, spans, deep, places, shift, self.media.joint)


def _digest(values: Tensor, shape: tuple[int, int]) -> bytes:
    made = hashlib.sha256(f"{[*values.shape]} {shape}".encode())
    made.update(values.contiguous().numpy().data)
    return made.digest()
