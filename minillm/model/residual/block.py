"""One layer: attention, or what stands in its place, and a feed-forward, built from their specs.

Shapes: B batch, T new tokens, S streams, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minillm import spec
from minillm.model.attention import GroupedQueryAttention, Step
from minillm.model.cache import AnyCache
from minillm.model.compressed.attention import CompressedAttention
from minillm.model.ffn import MLP, GatedMLP
from minillm.model.mla import LatentAttention
from minillm.model.moe import MoE
from minillm.model.norm import norm
from minillm.model.recurrent.beside import Beside
from minillm.model.recurrent.channels import ChannelDelta
from minillm.model.recurrent.conv import GatedConv
from minillm.model.recurrent.delta import GatedDeltaNet
from minillm.model.recurrent.fronted import Fronted
from minillm.model.recurrent.gated import GatedRecurrence
from minillm.model.recurrent.selective import SelectiveScan
from minillm.model.recurrent.state_space import StateSpace
from minillm.model.residual.per_layer import PerLayerInput
from minillm.model.residual.streams import HyperConnection, LayerStreams, LowRank
from minillm.ops import Ops
from minillm.spec.media import Encoder

# The module that each kind of spec is built as, called with (spec, hidden_size, ops).
BUILD: dict[type, Callable[[Any, int, Ops], nn.Module]] = {
    spec.GQA: GroupedQueryAttention,
    spec.MLA: LatentAttention,
    spec.Compressed: CompressedAttention,
    spec.GatedDeltaNet: GatedDeltaNet,
    spec.ChannelDelta: ChannelDelta,
    spec.GatedConv: GatedConv,
    spec.StateSpace: StateSpace,
    spec.SelectiveScan: SelectiveScan,
    spec.GatedRecurrence: GatedRecurrence,
    spec.Beside: Beside,
    spec.Fronted: Fronted,
    spec.GatedMLP: GatedMLP,
    spec.MLP: MLP,
    spec.MoE: MoE,
}


def build(part: Any, hidden_size: int, ops: Ops) -> nn.Module:
    """The module of an attention, of what stands in its place, or of a feed-forward."""
    return BUILD[type(part)](part, hidden_size, ops)


class Block(nn.Module):
    """One layer, as `spec.Layer` has it, and what `spec.PerLayer` and `spec.Streams` add: layer `index` of a model that
    is `whole`. x is `[B, T, E]`, or `[B, T, S, E]` of several streams, and so is what it gives."""

    def __init__(self, layer: spec.Layer, whole: spec.Decoder | Encoder, ops: Ops, index: int):
        super().__init__()
        self.index = index
        hidden_size, per_layer, streams = whole.hidden_size, whole.per_layer, whole.streams
        self.add, self.entered, self.total = ops.add, ops.ranks.entered, ops.ranks.total
        self.parallel, self.shares_norm = layer.parallel, layer.parallel and layer.ffn_norm is None
        self.attention_norm = norm(layer.attention_norm, hidden_size, ops)
        self.attention = build(layer.attention, hidden_size, ops) if layer.attention else None
        self.post_attention_norm = norm(layer.post_attention_norm, hidden_size, ops)
        self.ffn_norm = norm(layer.ffn_norm, hidden_size, ops)
        self.ffn = build(layer.ffn, hidden_size, ops) if layer.ffn else None
        self.summed, self.hashed = (getattr(self.ffn, name, False) for name in ("summed", "hashed"))
        self.post_ffn_norm = norm(layer.post_ffn_norm, hidden_size, ops)
        self.per_layer = PerLayerInput(per_layer, index, hidden_size, ops) if per_layer else None
        self.streams = LayerStreams(streams, hidden_size, ops) if isinstance(streams, spec.Streams) else None
        self.attention_mix, self.ffn_mix = (
            HyperConnection(streams, hidden_size, ops) if part and isinstance(streams, spec.HyperConnections) else None
            for part in (layer.attention, layer.ffn)
        )
        self.low_rank = LowRank(layer.low_rank, hidden_size, ops) if layer.low_rank else None
        self.branch_scale = layer.branch_scale
        self.scale = nn.Parameter(torch.ones(1)) if layer.scaled else None

    def forward(self, x: Tensor, step: Step, cache: AnyCache | None) -> Tensor:
        if self.attention_mix is not None or self.ffn_mix is not None:
            y = self._connected(x, step, cache)
        elif self.streams is None:
            y = self._one(x, step, cache)
            if self.per_layer is not None:
                y = self.add(y, self.per_layer(y, step))
        else:
            z = self.streams.foreseen(x)
            y = self.streams.corrected(z, self._one(z[..., 0, :], step, cache))
            if self.per_layer is not None:
                y = self.streams.told(y, self.per_layer(self.streams.first(y), step))
        return y if self.scale is None else y * self.scale

    def _connected(self, x: Tensor, step: Step, cache: AnyCache | None) -> Tensor:
        """Attention and feed-forward, each on a mix of several streams, `[B, T, S, E]`."""
        if self.attention_mix is not None:
            assert self.attention is not None
            given, mixed = self.attention_mix(x)
            made = self.total(self.attention(self.entered(self.attention_norm(given)), step, cache))
            x = mixed(self._scaled(self.post_attention_norm(made)))
        if self.ffn_mix is not None:
            given, mixed = self.ffn_mix(x)
            x = mixed(self._made(self.ffn_norm(given), step))
        return x

    def _one(self, x: Tensor, step: Step, cache: AnyCache | None) -> Tensor:
        """Attention and feed-forward on one stream, `[B, T, E]`, or one of the two."""
        if self.attention is None:
            return self._fed(x, self.ffn_norm(x), step)
        normed = self.attention_norm(x)
        attended = self._scaled(self.post_attention_norm(self.total(self.attention(self.entered(normed), step, cache))))
        if self.ffn is None:
            return self.add(x, attended)
        if self.low_rank is not None:
            h = (self.add(x, attended) + self.low_rank(normed)) * 2**-0.5
            normed = self.ffn_norm(h)
        elif self.parallel:
            h = self.add(x, attended)
            normed = normed if self.shares_norm else self.ffn_norm(x)
        else:
            normed, h = self.ffn_norm.of_sum(x, attended)
        return self._fed(h, normed, step)

    def _fed(self, h: Tensor, normed: Tensor, step: Step) -> Tensor:
        """h and what the feed-forward makes of its normed input."""
        return self.add(h, self._made(normed, step))

    def _made(self, normed: Tensor, step: Step) -> Tensor:
        """What the feed-forward makes of its normed input."""
        assert self.ffn is not None
        normed = self.entered(normed)
        made = self.ffn(normed, step.tokens) if self.hashed else self.ffn(normed)
        made = made if self.summed else self.total(made)
        return self._scaled(self.post_ffn_norm(made))

    def _scaled(self, y: Tensor) -> Tensor:
        return y if self.branch_scale == 1 else y * self.branch_scale
