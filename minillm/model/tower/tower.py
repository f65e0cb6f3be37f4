"""A tower over patches of a picture (Dosovitskiy et al., arXiv:2010.11929) or frames of a sound: a decoder's own layers
in which all positions see each other, and what makes embeddings of the decoder of their output.

Shapes: F frames of a video, 1 of a picture; N patches of a frame; E hidden size; H the decoder's hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.attention import Step
from minillm.model.filling import destinations
from minillm.model.linear import Linear
from minillm.model.norm import norm
from minillm.model.residual.block import Block
from minillm.model.tower import turning
from minillm.model.tower.clipped import clip
from minillm.model.tower.projector import Projector
from minillm.ops import REFERENCE, Ops
from minillm.ops.visibility import Visibility
from minillm.spec import GQA
from minillm.spec.media import Encoder, Patches, Spectrum
from minillm.weights.rules import Destination


class Read(NamedTuple):
    """What a tower makes of a picture or a sound: the state behind its last layer `[n, E]`, embeddings `[m, H]`, and
    what is added behind each of the decoder's first layers, `[m, H]` each."""

    states: Tensor
    embeddings: Tensor
    deep: tuple[Tensor, ...]


@dataclass(frozen=True)
class All(Visibility):
    """Every query sees every key."""

    @property
    def mask(self) -> None:
        return None

    @property
    def causal(self) -> bool:
        return False


class Tower(nn.Module):
    """As `spec.media.Encoder` has it."""

    def __init__(self, encoder: Encoder, ops: Ops = REFERENCE):
        super().__init__()
        self.spec, size, embed = encoder, encoder.hidden_size, encoder.embed
        if isinstance(embed, Patches):
            self.embed = Linear(embed.values, size, ops, embed.bias)
            self.patch_norm = norm(encoder.patch_norm, embed.values, ops)
            self.vector_norm = norm(encoder.vector_norm, size, ops)
            count = encoder.table.rows if encoder.table else 0
        else:
            self.convolutions = nn.ModuleList(Linear(3 * each, size, ops, bias=True) for each in (embed.bands, size))
            count = embed.positions
        self.table = nn.Parameter(torch.zeros(count, size)) if count else None
        self.pre_norm, self.post_norm = norm(encoder.pre_norm, size, ops), norm(encoder.post_norm, size, ops)
        self.layers = nn.ModuleList(Block(each, encoder, ops, index) for index, each in enumerate(encoder.layers))
        if encoder.clipped:
            clip(self.layers, ops)
        self.projector = Projector(encoder.projector, size, ops)
        tapped = encoder.tap_projector
        self.taps = nn.ModuleList(Projector(tapped, size, ops) for _ in encoder.taps if tapped)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Read:
        """Of the patches `[F, N, values]` of a grid of rows and columns, in the order of `turning.places`; or of the
        spectrogram `[bands, frames]` of a sound."""
        return self.of_sound(x, x.shape[1]) if grid is None else self.of_picture(x, grid)

    @torch.inference_mode()
    def of_picture(self, x_FNV: Tensor, grid: tuple[int, int]) -> Read:
        embed, made = self.spec.embed, self.spec
        assert isinstance(embed, Patches)
        places = turning.places(*grid, embed.merge)
        order, groups = None, [(1, len(places))]
        if made.window is not None:
            order, groups = turning.windows(places, made.window * embed.merge)
            places, x_FNV = places[order], x_FNV[:, order]
        x = self.vector_norm(self.embed(self.patch_norm(x_FNV.to(self.embed.weight))))
        if self.table is not None and made.table is not None:
            x = x + turning.learned(self.table, made.table, places.to(x.device))
        back = None if order is None else torch.argsort(order)
        return self._through(self.pre_norm(x), self._rotation(places, x), groups, back)

    @torch.inference_mode()
    def of_sound(self, x_BT: Tensor, heard: int) -> Read:
        """Of a spectrogram `[bands, frames]` of which the first `heard` frames hold sound; what comes of the others is
        seen by none and left out."""
        assert isinstance(self.spec.embed, Spectrum)
        x = x_BT.T
        convolutions: Any = self.convolutions
        for stride, each in zip((1, 2), convolutions, strict=True):
            x = F.gelu(each(F.pad(x.to(each.weight), (0, 0, 1, 1)).unfold(0, 3, stride).flatten(1)))
        assert self.table is not None
        x = (x + self.table[: len(x)])[: (heard - 1) // 2 + 1]
        return self._through(self.pre_norm(x[None]), None, [(1, x.shape[0])], None)

    def _rotation(self, places: Tensor, x: Tensor) -> tuple[Tensor, Tensor] | None:
        attention = self.spec.layers[0].attention if self.spec.layers else None
        if self.spec.columns is None or not isinstance(attention, GQA) or attention.rope is None:
            return None
        cos, sin = turning.rotation(places, attention.rope.dim, attention.rope.theta, self.spec.columns)
        return cos.to(x), sin.to(x)

    def _through(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, groups: list[tuple[int, int]], back: Tensor | None
    ) -> Read:
        """x `[F, N, E]` through the layers; windows lie one behind the other, `groups` of so many of one size. What
        comes out is put `back` into its places."""
        tapped = {}
        for index, layer in enumerate(self.layers):
            apart = self.spec.window is not None and index not in self.spec.whole
            x = _in_windows(layer, x, rotary, groups) if apart else layer(x, _step(layer, x, rotary), None)
            if index in self.spec.taps:
                tapped[index] = self.taps[self.spec.taps.index(index)](self._gathered(x, back))
        x = self.post_norm(x)
        states = (x if back is None else x[:, back]).flatten(0, 1)
        deep = tuple(tapped[index] for index in sorted(tapped))
        return Read(states, self.projector(self._gathered(x, back)), deep)

    def _gathered(self, x: Tensor, back: Tensor | None) -> Tensor:
        """`[m, gathered, E]` of x `[F, N, E]`; what is left over at the end of a sound goes."""
        x = (x if back is None else x[:, back]).flatten(0, 1)
        count = self.spec.projector.gathered
        return x[: len(x) // count * count].unflatten(0, (-1, count))

    def destinations(self) -> dict[str, Destination]:
        """Where a checkpoint's tensors go."""
        return destinations(self)


def _in_windows(
    layer: nn.Module, x: Tensor, rotary: tuple[Tensor, Tensor] | None, groups: list[tuple[int, int]]
) -> Tensor:
    """A layer on each window by itself, those of one size together."""
    made, start = [], 0
    for count, size in groups:
        part = slice(start, start := start + count * size)
        turned = None
        if rotary is not None:
            cos, sin = (_apart(each[:, part].expand(len(x), -1, -1), count) for each in rotary)
            turned = cos, sin
        rows = _apart(x[:, part], count)
        y = layer(rows, _step(layer, rows, turned), None)
        made.append(y.unflatten(0, (len(x), count)).flatten(1, 2))
    return torch.cat(made, dim=1)


def _apart(x: Tensor, count: int) -> Tensor:
    """`[F, count size, …]` -> `[F count, size, …]`."""
    return x.unflatten(1, (count, -1)).flatten(0, 1)


def _step(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Step:
    visible = All(0, x.shape[1], None, None, x.device)
    turned = {} if rotary is None else {layer.attention.spec.rope: rotary}
    return Step(0, turned, {None: visible}, {None: None})
