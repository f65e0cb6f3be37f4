"""What training takes in memory, from sizes alone, before anything is loaded.

    weights      as they are held, quantised ones in their forms, and the largest of these as numbers, twice: such a
                 matrix is dequantised where it is used, no more than `held.PIECE` values of it at a time
    learning     for each value that learns 4 bytes of its gradient (2 of 16 bits), 8 of the optimiser (2 and a bit with
                 states of 8 bits, 4 with Muon) and, of a parameter of 16 bits, 4 of its master copy
    activations  per token and layer 6 E + 4 (Q + K) + 4 F values: E the hidden size, Q and K those of queries and
                 keys, F of the feed-forward as far as a token goes through it; where layers are computed again E, and
                 one layer's; 2 H more for each other token where scores are made one by one
    logits       of the words of a chunk, in fp32, and their gradients

The formula of activations is within a tenth of what autograd keeps of plain layers (tests/tune/test_budget.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from minillm.guard import memory
from minillm.model import held
from minillm.model.decoder import Decoder
from minillm.ops.cross_entropy import MOST_LOGITS
from minillm.ops.state_space import CHUNK
from minillm.spec import (
    GQA,
    MLA,
    AddedConv,
    Attention,
    ChannelDelta,
    Compressed,
    Entries,
    GatedConv,
    GatedRecurrence,
    HyperConnections,
    Layer,
    MoE,
    Recurrent,
    SelectiveScan,
    StateSpace,
)
from minillm.spec import Decoder as Spec
from minillm.tune.optimizers import Update
from minillm.weights.ints import Integers


@dataclass(frozen=True)
class Budget:
    """Bytes."""

    weights: int
    learning: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.learning + self.activations + self.logits

    def words(self) -> str:
        parts = {"weights": self.weights, "gradients and optimiser": self.learning, "activations": self.activations,
                 "logits": self.logits}  # fmt: skip
        return ", ".join(f"{name} {size(each)}" for name, each in parts.items()) + f": {size(self.total)} in all"


def size(nbytes: float) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"


def over(ranks: int, model: Decoder, needed: Budget, trained: int, quantised: bool) -> Budget:
    """What one of several ranks takes: its share of the weights and of what belongs to the `trained` values of them,
    and whole, with gradients, what is in no layer, the layer that is computed, and the next, once as it arrives and
    once put together. A quantised checkpoint each reads whole before it keeps a share."""
    layers = [sum(each.numel() for each in layer.parameters()) for layer in model.layers]
    values = sum(each.numel() for each in model.parameters())
    whole = min((values - sum(layers) + 3 * max(layers)) / values, 1)
    weights = needed.weights * (1 / ranks + (1 if quantised else whole))
    learning = needed.learning / ranks + whole * trained * model.dtype.itemsize if trained else needed.learning
    return replace(needed, weights=int(weights), learning=int(learning))


def dequantised(model: Decoder) -> int:
    """Bytes beside the parameters of a model that is held quantised, or will be."""
    largest = max(math.prod(shape[-2:]) for shape in held.holdable(model).values())
    return 2 * model.dtype.itemsize * min(largest, held.PIECE)


def held_weights(model: Decoder, formats: Mapping[str, Integers]) -> int:
    """Bytes of a skeleton's parameters, those of `formats` as integers."""
    total = 0
    for name, each in model.named_parameters():
        parts = formats[name].parts(tuple(each.shape)).values() if name in formats else [(each.shape, each.dtype)]
        total += sum(math.prod(shape) * dtype.itemsize for shape, dtype in parts)
    return total


def learning(values: int, dtype: torch.dtype, update: Update) -> int:
    """Bytes of what belongs to values that learn, without themselves."""
    states = {"adamw": 8.0, "adamw8bit": 2 + 8 / 256, "muon": 4.0}[update.kind]
    master = 4 if dtype != torch.float32 and not update.stochastic else 0
    return int(values * (dtype.itemsize + states + master))


def activations(spec: Spec, rows: int, length: int, width: int, recomputes: bool) -> int:
    """Bytes of what autograd keeps of `rows` of `length` tokens, values being of `width` bytes."""
    streams = spec.streams.count if spec.streams else 1
    layers = [_kept(spec, layer, length) + _mixes(spec, width) for layer in spec.layers]
    values = len(layers) * streams * spec.hidden_size + max(layers) if recomputes else sum(layers)
    return rows * length * width * values


def _mixes(spec: Spec, width: int) -> int:
    """Values of a token that a layer keeps of several streams to mix them: each of its parts as they are, and up to
    three times in fp32."""
    if not isinstance(spec.streams, HyperConnections):
        return 0
    return (6 if width == 4 else 13) * spec.streams.count * spec.hidden_size


def _kept(spec: Spec, layer: Layer, length: int) -> int:
    """Values of a token in a layer."""
    ffn, inner = layer.ffn, 0 if layer.ffn is None else layer.ffn.intermediate_size
    if isinstance(ffn, MoE):
        inner = inner * ffn.router.top_k + (ffn.shared.intermediate_size if ffn.shared else 0)
    mixed = sum(_mixed(each, length) for each in layer.mixers)
    return 6 * spec.hidden_size + mixed + 4 * inner


def _mixed(attention: Attention | Entries | Recurrent, length: int) -> int:
    """Values of a token in what looks at others."""
    scores = 0
    if isinstance(attention, GQA):
        heads = (attention.num_heads + attention.num_kv_heads) * attention.head_dim
        by_formula = attention.scores.softcap is not None or attention.scores.slopes is not None or attention.sinks
        by_formula = by_formula or attention.scores.relative is not None
        scores = 2 * attention.num_heads * length if by_formula else 0
    elif isinstance(attention, MLA):
        heads = attention.num_heads * (2 * (attention.nope_dim + attention.rope.dim) + 2 * attention.v_dim)
        scores = 2 * attention.num_heads * length if attention.sinks else 0
    elif isinstance(attention, ChannelDelta):
        heads = 7 * attention.inner
    elif isinstance(attention, Compressed):
        heads = attention.num_heads * attention.head_dim + attention.q_rank + attention.groups * attention.group_rank
        scores = 2 * attention.num_heads * length
    elif isinstance(attention, Entries):
        heads = attention.inputs
        scores = 2 * attention.indexer.num_heads * length // attention.span if attention.indexer else 0
    elif isinstance(attention, AddedConv):
        heads = attention.channels
    elif isinstance(attention, GatedConv):
        heads = 2 * attention.channels
    elif isinstance(attention, StateSpace):
        # chunks have scores of each head over 64 positions three times, and B and C once for each head
        inner = attention.num_heads * attention.head_dim
        heads = 4 * inner + 2 * attention.num_heads * (attention.state_size + CHUNK)
    elif isinstance(attention, GatedRecurrence):
        heads = 4 * attention.channels
    elif isinstance(attention, SelectiveScan):
        # a state behind each position, what it kept and was given, and both products of these
        heads, scores = 3 * attention.channels, 5 * attention.state_size * attention.channels
    else:
        heads = 2 * attention.num_k_heads * attention.k_dim + 3 * attention.num_v_heads * attention.v_dim
    return 4 * heads + scores


def logits(spec: Spec, tokens: int) -> int:
    """Bytes of a chunk of logits and of their gradients."""
    return 2 * 4 * min(tokens * spec.vocab_size, max(MOST_LOGITS, spec.vocab_size))


def refuse(needed: Budget, device: torch.device, here: int = 1) -> None:
    """Raise ValueError where a run cannot fit, before anything is taken: on a CPU `here` processes of it."""
    remedy = "give a smaller --micro-batch or --max-length, --recompute, or --quantize int4"
    if device.type != "cuda":
        memory.refuse(needed.total * here, "training", remedy)
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed.total > free:
        raise ValueError(f"training takes {size(needed.total)} and the GPU has {size(free)} left; {remedy}")
