"""Attention: what lets a position see others through scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from minillm.spec.indexer import BlockIndexer, Indexer
from minillm.spec.norm import LayerNorm, Norm
from minillm.spec.recurrent import AddedConv
from minillm.spec.rope import Rope, Unturned

QKNormWidth = Literal["head", "heads", "all"]


@dataclass(frozen=True)
class QKNorm:
    """The norms of q and k: `width` "head" normalises each head over head_dim, all heads with one weight; "heads" each
    head with a weight of its own; "all" the heads together over their full width. `turned`: they stand behind the
    rotation, not before it."""

    norm: Norm | LayerNorm
    width: QKNormWidth = "head"
    turned: bool = False


@dataclass(frozen=True)
class Temperature:
    """The query at position t is multiplied by 1 + `rate` ln(1 + floor((t + `shift`) / `span`)), so that softmax stays
    as sharp over longer texts (Nakanishi, arXiv:2501.19399). Not `stepped`: by 1 + rate ln(max(1, (t + shift) / span)).
    """

    rate: float
    span: int
    shift: int = 0
    stepped: bool = True


@dataclass(frozen=True)
class Relative:
    """r · P[i - j] is added to the score of query i and key j, r being `dim` values that each head makes of x, and P a
    learned vector for each distance below `extent`; beyond it nothing is (Inkling, 2026)."""

    dim: int
    extent: int


@dataclass(frozen=True)
class Scores:
    """q kᵀ * `scale`, 1 / sqrt(head_dim) where None; with a `softcap` c they become c tanh(scores / c).

    `slopes`: head h then loses slopes[h] for each position between query and key (ALiBi, Press et al.,
    arXiv:2108.12409). `relative`: a learned number for each distance, by what a query is, is added. `temperature`:
    queries, and what they add, grow with their position.
    """

    scale: float | None = None
    softcap: float | None = None
    slopes: tuple[float, ...] | None = None
    temperature: Temperature | None = None
    relative: Relative | None = None


class Chunk(int):
    """A window that does not slide: of each stretch of so many positions a query sees those of its own, up to itself
    (Llama 4, 2025)."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chunk) and int(self) == int(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((Chunk, int(self)))

    def __repr__(self) -> str:
        return f"Chunk({int(self)})"


@dataclass(frozen=True)
class KV:
    """Where keys and values come from, if not each from a product of its own.

    `v_norm`: each head of v is normalised too. `v_is_k`: v is k as it is before its norm and its rotation. `layer`:
    both are those of an earlier layer, as it caches them; this one has queries alone and no cache (Brandon et al.,
    arXiv:2405.12981). `v_dim`: a head's v has so many values where it has not as many as k. `v_scale`: v is multiplied
    by it. `indexer`: it chooses the keys that a query sees; there is no window then. `conv_kernel`: both go through an
    `AddedConv` over so many positions before all that.
    """

    v_norm: Norm | None = None
    v_is_k: bool = False
    layer: int | None = None
    v_dim: int | None = None
    v_scale: float = 1.0
    indexer: BlockIndexer | None = None
    conv_kernel: int | None = None


@dataclass(frozen=True)
class Gate:
    """What the heads give is multiplied by act(W x): of each value a number of its own, or of each "head" one (Qiu et
    al., arXiv:2505.06708). `with_q`: W lies in the product of q, behind each head of it, whose v is as
    wide. `sinks`: each head has one learned score more too, as in `GQA`."""

    activation: Literal["sigmoid", "softplus"] = "sigmoid"
    width: Literal["value", "head"] = "value"
    with_q: bool = False
    sinks: bool = False


@dataclass(frozen=True)
class GQA:
    """Grouped-query attention (Ainslie et al., arXiv:2305.13245): num_heads / num_kv_heads query heads share a kv head.

    `window` = W: a query sees itself and the W - 1 positions before it, or what a `Chunk` says; None: all of them.
    `qk_norm`: q and k are normalised. `clip`: q, k and v are then clamped to [-clip, clip].
    `rope` None: nothing turns, and if `scores` do not say where a key lies nothing does. `weakened` by "sinks", each
    head has one learned score more, that takes its share of the softmax and gives nothing to the sum; or by a gate.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope | None
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QKNorm | None = None
    clip: float | None = None
    scores: Scores = Scores()
    kv: KV = KV()
    weakened: Literal["sinks"] | Gate | None = None

    @property
    def v_dim(self) -> int:
        return self.kv.v_dim or self.head_dim

    @property
    def indexer(self) -> BlockIndexer | None:
        return self.kv.indexer

    @property
    def conv(self) -> AddedConv | None:
        """What keys and values side by side go through."""
        channels = self.num_kv_heads * (self.head_dim + self.v_dim)
        return AddedConv(channels, self.kv.conv_kernel) if self.kv.conv_kernel else None

    @property
    def lender(self) -> int | None:
        """The layer whose keys and values this one reads."""
        return self.kv.layer

    def borrowing(self, layer: int) -> GQA:
        """The same with the keys and values of another layer."""
        return replace(self, kv=replace(self.kv, layer=layer))

    @property
    def sinks(self) -> bool:
        return self.weakened == "sinks" or (self.gate is not None and self.gate.sinks)

    @property
    def gate(self) -> Gate | None:
        return self.weakened if isinstance(self.weakened, Gate) else None


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): k and v of all heads come from one latent vector of
    `kv_rank` values per position, and one rotary key of rope.dim values is shared by all heads.

    A head's q and k have nope_dim + rope.dim values, its v has v_dim. `q_rank`: q too goes through a latent; None: one
    plain projection. `latent_norm` is that of both latents. Scores are scaled by
    score_factor / sqrt(nope_dim + rope.dim). `bias` is on the projections into the latents and on the output.
    `temperature`: queries grow with their position. `gate`: the output of the heads is multiplied by it.
    `indexer`: it chooses the keys that a query sees, from the latent of q; or the number of an earlier layer, whose
    choice is used here too.
    """

    num_heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    v_dim: int
    rope: Rope | Unturned
    latent_norm: Norm
    score_factor: float = 1.0
    bias: bool = False
    temperature: Temperature | None = None
    gate: Gate | None = None
    indexer: Indexer | int | None = None

    window: ClassVar[None] = None  # latent attention sees all of the past
    kv: ClassVar[KV] = KV()  # and has its own latents

    @property
    def sinks(self) -> bool:
        return self.gate is not None and self.gate.sinks

    @property
    def lender(self) -> int | None:
        """The layer whose choice of keys is used here too."""
        return self.indexer if isinstance(self.indexer, int) else None

    def borrowing(self, layer: int) -> MLA:
        """The same with the choice of another layer."""
        return replace(self, indexer=layer)
