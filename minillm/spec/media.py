"""What reads pictures and sound: a tower of a decoder's own layers, and how its outputs stand in a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from minillm.spec import Layer
from minillm.spec.ffn import PlainActivation
from minillm.spec.norm import LayerNorm, Norm

BOUNDS = ("input_min", "input_max", "output_min", "output_max")  # of a product that is `clipped`


@dataclass(frozen=True)
class Patches:
    """A picture is cut into squares of `side` pixels, `frames` of them one behind the other in time (a picture is its
    own next frame); each becomes a vector by one product with its colours, frames, rows and columns, in this order
    (Dosovitskiy et al., arXiv:2010.11929). `merge` squares by as many lie together, as the projector gathers them."""

    side: int
    merge: int
    frames: int = 1
    bias: bool = False

    @property
    def values(self) -> int:
        """Of a patch, in three colours."""
        return 3 * self.frames * self.side**2


@dataclass(frozen=True)
class Spectrum:
    """A sound's spectrogram of so many mel `bands`, which goes through two convolutions over three frames, the second
    of which takes every other frame (Whisper, Radford et al., arXiv:2212.04356). `positions`: the frames behind them
    that have a learned row each."""

    bands: int
    positions: int


@dataclass(frozen=True)
class Table:
    """Learned rows that are added to patches, `side` by `side` of them, row by row. `stretched`: bilinearly, to any
    grid, whose corners fall on the table's; else the grid is as large as the table. `summed`: there are `side` of them
    for columns, then as many for rows, and a patch has one of each."""

    side: int
    stretched: bool = False
    summed: bool = False

    @property
    def rows(self) -> int:
        return 2 * self.side if self.summed else self.side**2


@dataclass(frozen=True)
class Projector:
    """What `gathered` neighbours in the tower become, one embedding of the decoder: they are put one after the other
    ("concat") or averaged ("mean"), with the norm before or behind that, mixed into `mixed` values by a product without
    bias, and go through products into `widths` values with the activation between each two. An average is multiplied by
    `scale` in fp32; `standardized`: then a learned value is taken off and the rest multiplied by another."""

    gathered: int
    widths: tuple[int, ...]
    pool: Literal["concat", "mean"] = "concat"
    norm: Norm | LayerNorm | None = None
    norm_of: Literal["each", "gathered"] = "each"
    mixed: int | None = None
    activation: PlainActivation = "gelu"
    bias: bool = True
    scale: float = 1.0
    standardized: bool = False


@dataclass(frozen=True)
class Encoder:
    """A tower: patches or frames, layers in which all of a picture, or all of a sound, see each other, a projector.
    There may be no layers. `patch_norm`: patches are normalised before they become vectors, `vector_norm` these.

    Of a head's rates of rotation the first half of its pairs has every other one, by the row; the other half has by
    the column the "same" ones, or those "between" them; or columns come "first". `columns` None: nothing turns.
    `clipped`: what products are given and what they give is clamped to bounds of each that are stored. Layers but those
    of `whole` see windows of `window` by `window` gathered blocks only, counted from the top left. What leaves the
    layers `taps` goes through projectors of their own too, for the first layers of the decoder (DeepStack,
    arXiv:2406.04334).
    """

    hidden_size: int
    embed: Patches | Spectrum
    layers: tuple[Layer, ...]
    projector: Projector
    columns: Literal["same", "between", "first"] | None = None
    table: Table | None = None
    patch_norm: LayerNorm | None = None
    vector_norm: LayerNorm | None = None
    pre_norm: Norm | LayerNorm | None = None
    post_norm: Norm | LayerNorm | None = None
    window: int | None = None
    whole: tuple[int, ...] = ()
    taps: tuple[int, ...] = ()
    tap_projector: Projector | None = None
    clipped: bool = False

    per_layer: ClassVar[None] = None  # a tower has one stream, and tokens none
    streams: ClassVar[None] = None


@dataclass(frozen=True)
class Placeholder:
    """How a picture or sound stands in a prompt. What a chat template writes for each is `mark`; in its place come
    `before`, then `token` for each embedding, then `after`. Behind each row of a picture but the last comes `between`.
    `crops`: what stands in front of a long picture that is also seen in parts, between it and them, and between two.
    """

    mark: str
    token: str
    before: str = ""
    after: str = ""
    between: str = ""
    crops: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Video:
    """How a video stands in a prompt: groups of frames, as many as `Patches.frames`, in order.

    Without `stamps` all their placeholders are one run whose coordinate in time is the group's number, or grows by
    `per_second` in each second. With them the time is written in front of each group, which is a picture by itself:
    "<1.5 seconds>", or "00:01 " as a clock has it. Frames are sampled so many in each second, at equal steps from the
    first on, or evenly to the last ("ends"); or there is a "number" of them, whatever the length. `bounds`: what bounds
    on pixels are of; `tokens` those that are shown within the cap on them (`media.settings.Clips`).
    """

    placeholder: Placeholder
    tokens: int
    stamps: Literal["seconds", "clock"] | None = None
    per_second: float | None = None
    sampling: Literal["steps", "ends", "number"] = "steps"
    bounds: Literal["frame", "clip"] = "frame"


@dataclass(frozen=True)
class Media:
    """What a decoder is given of pictures (or sounds) beside text, with the size that a picture is brought to: "area",
    sides are multiples of a block with an area within bounds; "budget", as large as the area allows; "edge", neither
    side is over a bound; "fixed". `video`: how videos stand in a prompt, where they are seen.

    `axes`: of each rotary pair of the decoder which coordinate turns it, 0 time, 1 row or 2 column (M-RoPE, Wang et
    al., arXiv:2409.12191); None: the position does. `joint`: embeddings of one picture see each other both ways, if
    `windowed` in layers with a window alone. `told_as`: the token that a placeholder is for layers that have embeddings
    of tokens by themselves.
    """

    kind: Literal["image", "audio"]
    encoder: Encoder
    placeholder: Placeholder
    sizing: Literal["area", "budget", "edge", "fixed"] = "area"
    axes: tuple[int, ...] | None = None
    joint: bool = False
    video: Video | None = None
    windowed: bool = False
    told_as: int | None = None
