"""The vocabulary: what a decoder is made of, as small frozen dataclasses without a line of torch.

A model is a tuple of `Layer`s, each with its own attention and feed-forward, so that a model whose layers alternate
is a list comprehension in its family file and never a condition in the model. A family file turns a config into a
`Decoder`; `model/decoder.py` turns a `Decoder` into modules. Read this file first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.spec.attention import GQA, KV, MLA, Chunk, Gate, QKNorm, QKNormWidth, Relative, Scores, Temperature
from minillm.spec.compressed import Compressed, Entries, EntryIndexer
from minillm.spec.embedding import TOKENS, Embedding, Learned
from minillm.spec.ffn import (
    MLP,
    XIELU,
    Activation,
    CappedSwiGLU,
    ClampedSwiGLU,
    GatedMLP,
    Gating,
    GroupScore,
    MoE,
    PlainActivation,
    Router,
    RouterScore,
    Ungated,
)
from minillm.spec.indexer import BlockIndexer, Indexer
from minillm.spec.norm import LayerNorm, Norm, NormCast
from minillm.spec.per_layer import PerLayer
from minillm.spec.recurrent import (
    AddedConv,
    ChannelDelta,
    GatedConv,
    GatedDeltaNet,
    GatedRecurrence,
    Recurrent,
    SelectiveScan,
    StateSpace,
)
from minillm.spec.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    Rope,
    RopeLayout,
    RopeScaling,
    Unturned,
    YarnScaling,
)
from minillm.spec.shared import Fronted, SharedBlock
from minillm.spec.streams import HyperConnections, LowRank, Streams

__all__ = [
    "GQA",
    "KV",
    "MLA",
    "MLP",
    "XIELU",
    "Activation",
    "AddedConv",
    "Attention",
    "Beside",
    "BlockIndexer",
    "CappedSwiGLU",
    "ChannelDelta",
    "Chunk",
    "ClampedSwiGLU",
    "Compressed",
    "Decoder",
    "DynamicScaling",
    "Embedding",
    "Entries",
    "EntryIndexer",
    "Fronted",
    "Gate",
    "GatedConv",
    "GatedDeltaNet",
    "GatedMLP",
    "GatedRecurrence",
    "Gating",
    "GroupScore",
    "HyperConnections",
    "Indexer",
    "Layer",
    "LayerNorm",
    "Learned",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "LowRank",
    "Mixer",
    "MoE",
    "Norm",
    "NormCast",
    "PerLayer",
    "PlainActivation",
    "ProportionalScaling",
    "QKNorm",
    "QKNormWidth",
    "Recurrent",
    "Relative",
    "Rope",
    "RopeLayout",
    "RopeScaling",
    "Router",
    "RouterScore",
    "Scores",
    "SelectiveScan",
    "SharedBlock",
    "StateSpace",
    "Streams",
    "Temperature",
    "Ungated",
    "Unturned",
    "YarnScaling",
    "index_dim",
]


Attention = GQA | MLA | Compressed


def index_dim(attention: Attention) -> int:
    """How many values of each position an attention keeps to choose by."""
    made = attention.indexer
    return 0 if made is None or isinstance(made, int) else made.head_dim


@dataclass(frozen=True)
class Beside:
    """Attention and a state space on the same x: factors[0] attention(x) + factors[1] recurrent(x)."""

    attention: GQA
    recurrent: StateSpace
    factors: tuple[float, float] = (1.0, 1.0)


Mixer = Attention | Recurrent | Beside | Fronted  # what lets positions of a sequence see each other


@dataclass(frozen=True)
class Layer:
    """h = x + post_attention_norm(attention(attention_norm(x))), then h + post_ffn_norm(ffn(ffn_norm(h))).

    A norm that is None is left out, and so is attention, or ffn, with its norms. `parallel`: both see the same x,
    x + attention(attention_norm(x)) + ffn(ffn_norm(x)), and with ffn_norm None they share attention_norm. `scaled`: all
    that a layer returns is multiplied by one learned number, or what "ffn" gives is. `low_rank` (and not parallel):
    what it makes of attention_norm(x) is added to h, which is divided by sqrt(2). What attention and ffn give is
    multiplied by `branch_scale` before it is added. `conv`: each goes through one of its own, before its norm.
    """

    attention_norm: Norm | LayerNorm | None
    attention: Mixer | None
    ffn_norm: Norm | LayerNorm | None
    ffn: GatedMLP | MLP | MoE | None
    post_attention_norm: Norm | LayerNorm | None = None
    post_ffn_norm: Norm | LayerNorm | None = None
    parallel: bool = False
    scaled: bool | Literal["ffn"] = False
    low_rank: LowRank | None = None
    branch_scale: float = 1.0
    conv: AddedConv | None = None

    @property
    def mixers(self) -> tuple[Attention | Entries | Recurrent, ...]:
        """What looks at other positions, each with a cache of its own."""
        return self._mixers + ((self.conv,) * 2 if self.conv is not None else ())

    @property
    def _mixers(self) -> tuple[Attention | Entries | Recurrent, ...]:
        if isinstance(self.attention, GQA) and self.attention.conv is not None:
            return self.attention, self.attention.conv
        if isinstance(self.attention, Compressed) and self.attention.entries is not None:
            return self.attention, self.attention.entries
        if isinstance(self.attention, Beside):
            return self.attention.attention, self.attention.recurrent
        if isinstance(self.attention, Fronted):
            return self.attention.block.attention, self.attention.recurrent
        return () if self.attention is None else (self.attention,)


@dataclass(frozen=True)
class Decoder:
    """Embedding, layers, final norm, and a head that is the embedding itself when `tied`, or has a bias.

    Logits are multiplied by `logit_scale`; with a `logit_softcap` c they then become c tanh(logits / c). `per_layer`:
    layers have embeddings of their own. `streams`: several residual streams.
    `context` is the number of positions that the published model is meant for; generation refuses to go beyond it.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    final_norm: Norm | LayerNorm
    tied: bool
    context: int
    head_bias: bool = False
    embedding: Embedding = TOKENS
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    per_layer: PerLayer | None = None
    streams: Streams | HyperConnections | None = None

    @property
    def mixers(self) -> list[Attention | Entries | Recurrent]:
        """Those of all layers."""
        return [each for layer in self.layers for each in layer.mixers]

    @property
    def attentions(self) -> list[Attention]:
        """Those of the layers that have one."""
        return [each for each in self.mixers if isinstance(each, Attention)]

    @property
    def ropes(self) -> list[Rope]:
        """Of the attentions that turn what they compare."""
        return [each.rope for each in self.attentions if isinstance(each.rope, Rope)]
