"""The decoder: embedding, a stack of blocks built from their specs, a norm, a head.

Shapes: B batch, T new tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minillm import spec
from minillm.model.attention import Step
from minillm.model.cache import Cache
from minillm.model.embedding import Embedding
from minillm.model.filling import destinations, on_meta
from minillm.model.held import held_in, product
from minillm.model.lending import lend
from minillm.model.linear import Linear
from minillm.model.lora.adapted import Choice, adapted
from minillm.model.moe import MoE
from minillm.model.norm import norm
from minillm.model.ragged import Ragged
from minillm.model.residual.block import Block
from minillm.model.residual.per_layer import PerLayerEmbedding
from minillm.model.residual.streams import streams
from minillm.model.rope import Rotary
from minillm.ops import REFERENCE, Ops
from minillm.ops.cross_entropy import MOST_LOGITS
from minillm.ops.ranks import cross_entropy
from minillm.ops.routing import Routing
from minillm.ops.visibility import Visibility
from minillm.weights.rules import Destination

IGNORED = -100  # what a label is where nothing is to be learnt


class Decoder(nn.Module):
    """tokens int64 `[B, T]` -> logits `[B, T, V]` in the model's dtype."""

    def __init__(self, decoder: spec.Decoder, ops: Ops = REFERENCE):
        super().__init__()
        self.spec = decoder
        self.ops = ops
        self.choice = Choice()  # of adapters
        size, told, placed = decoder.hidden_size, decoder.per_layer, decoder.embedding.positions
        self.embedding = Embedding(decoder.vocab_size + decoder.embedding.unused, size, ops, decoder.embedding.rows)
        self.positions = Embedding(placed.count + placed.skipped, size) if placed else None
        self.embedding_norm = norm(decoder.embedding.norm, size, ops)
        self.per_layer = PerLayerEmbedding(told, decoder.vocab_size, size, ops) if told else None
        self.layers = nn.ModuleList(Block(each, decoder, ops, index) for index, each in enumerate(decoder.layers))
        self.streams = streams(decoder.streams, size, ops)
        self.norm = norm(decoder.final_norm, size, ops)
        self.head = None if decoder.tied else Linear(size, len(self.embedding.weight), ops, bias=decoder.head_bias)
        self._rotary = {rope: Rotary(rope, ops.cos_sin) for rope in {*decoder.ropes}}
        self._windows = {attention.window for attention in decoder.attentions}
        self.recomputes = False  # whether layers keep their inputs alone for the way back, and run once more there
        self._looks_back = any(isinstance(each.attention, spec.Fronted) for each in decoder.layers)  # at the embedding
        lend(self.layers, decoder)

    @property
    def dtype(self) -> torch.dtype:
        """What the hidden states are in, and what a cache must be."""
        return self.embedding.dtype

    def forward(
        self, tokens_BT: Tensor, cache: Cache | None = None, last_only: bool = False, collect_routing: bool = False
    ) -> Any:
        """Logits `[B, T, V]`, or `[B, 1, V]` of the last position with `last_only`.

        With a cache the tokens continue what it holds, and it grows by T; without, they stand alone. With
        `collect_routing` it returns (logits, routing): for each layer the `Routing` of its B * T tokens, row by row,
        or None where it has no router.
        """
        if collect_routing:
            with self.collected() as routing:
                return self(tokens_BT, cache, last_only), routing
        x_BTE = self.hidden(tokens_BT, cache)
        return self.logits(x_BTE[:, -1:] if last_only else x_BTE)

    def hidden(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        position_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> Tensor:
        """The hidden states `[B, T, E]` behind the last layer, before the final norm; `decode_at` has `position_B`,
        `loss` has `starts_BT`."""
        learned = self.positions is not None
        positions_BT = self._positions(tokens_BT, cache, position_B, starts_BT)[0] if learned else None
        x_BTE = self.embed(tokens_BT, positions_BT)
        step = self.step(tokens_BT, cache, position_B, x_BTE, starts_BT)
        x_BTE = self._through(x_BTE, step, None if cache is None else cache.layers)
        if cache is not None and position_B is None:
            cache.length += tokens_BT.shape[1]
        return x_BTE

    def hidden_of_many(
        self, tokens_N: Tensor, position_N: Tensor, lengths: tuple[int, ...], ragged: Ragged, pools: Sequence[Any]
    ) -> Tensor:
        """As `hidden`, `[1, N, E]`, of tokens of many sequences at int64 positions `[N]`, each turned as in a sequence
        of its length (one for all will do); `pools` are those of the layers."""
        x_1NE, tokens_1N = self.embed(tokens_N[None], position_N[None]), tokens_N[None]
        if ragged.inserted is not None:
            x_1NE, tokens_1N = ragged.inserted.placed(x_1NE), ragged.inserted.told(tokens_1N)
        turning = position_N if ragged.turning is None else ragged.turning  # [N], or [N, P] of each rotary pair
        tables = {rope: table(turning[:, None], lengths, self.dtype) for rope, table in self._rotary.items()}
        rotary = {rope: (cos.transpose(0, 1), sin.transpose(0, 1)) for rope, (cos, sin) in tables.items()}
        told = None if self.per_layer is None else self.per_layer(tokens_1N, x_1NE)
        embedded = x_1NE if self._looks_back else None
        step = Step(0, rotary, {}, {}, position_N[None], 0, None, embedded, told, ragged=ragged, tokens=tokens_1N)
        return self._through(x_1NE, step, pools)

    def _through(self, x_BTE: Tensor, step: Step, caches: Sequence[Any] | None) -> Tensor:
        inserted = None if step.ragged is None else step.ragged.inserted

        def layers(x: Tensor) -> Tensor:
            for index, layer in enumerate(self.layers):
                given = (x, step, None if caches is None else caches[index])
                x = checkpoint(layer, *given, use_reentrant=False) if self.recomputes else layer(*given)
                x = x if inserted is None else inserted.deepened(x, index)
            return x

        x = x_BTE if self.streams is None else self.streams.parted(x_BTE)
        return self.merged(self.ops.ranks.through(x, layers))

    def merged(self, x: Tensor) -> Tensor:
        """What the final norm is given, `[B, T, E]`, of what a layer gives."""
        return x if self.streams is None else self.streams.merged(x)

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """What the first layer is given, `[B, T, E]`, at int64 positions `[B or 1, T]`, else from 0 on."""
        x_BTE, made = self.embedding(tokens_BT), self.spec.embedding
        x_BTE = x_BTE if made.scale == 1 else x_BTE * x_BTE.new_full((), made.scale)  # rounded to the type of x
        if self.positions is not None and made.positions is not None:
            every = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
            positions_BT = every if positions_BT is None else positions_BT
            x_BTE = x_BTE + self.positions(positions_BT + made.positions.skipped)
        return self.embedding_norm(x_BTE)

    @torch.no_grad()
    def decode_at(self, tokens_B: Tensor, position_B: Tensor, cache: Cache) -> Tensor:
        """The logits `[B, V]` behind one token per row, int64 `[B]`, at int64 positions `[B]` that only the device
        knows: a step that a graph can record. The cache is filled, and its length stays as it is."""
        return self.logits(self.hidden(tokens_B[:, None], cache, position_B))[:, -1]

    def loss(self, tokens_BT: Tensor, labels_BT: Tensor | None = None, starts_BT: Tensor | None = None) -> Tensor:
        """`next_token_loss` of the tokens; through the kernels without their logits (`kernels/cross_entropy.py`).

        With `labels_BT`, which has IGNORED wherever it is not the token, the mean over the others. `starts_BT`, where
        rows hold several documents: int64, of each position the one where its document begins.
        """
        targets_N = (tokens_BT if labels_BT is None else labels_BT)[:, 1:].flatten()
        x_NE = self.hidden(tokens_BT, starts_BT=starts_BT)[:, :-1].flatten(0, 1)
        if labels_BT is not None:
            x_NE, targets_N = x_NE[targets_N != IGNORED], targets_N[targets_N != IGNORED]
        return self.cross_entropy(x_NE, targets_N)

    def cross_entropy(self, x_NE: Tensor, targets_N: Tensor) -> Tensor:
        """The mean of -log p(target) behind hidden states as `hidden` gives them, fp32 `[]`."""
        head = self.embedding if self.head is None else self.head
        x_NE, scale = self.norm(x_NE), self.spec.logit_scale
        x_NE = x_NE if scale == 1 else x_NE * scale  # no head with a factor has a bias
        if not held_in(head) and adapted(head) is None and self.ops.ranks.wide == 1:
            cap, bias = self.spec.logit_softcap, getattr(head, "bias", None)
            weight = head.weight[: self.spec.vocab_size] if self.spec.embedding.unused else head.weight
            return self.ops.linear_cross_entropy(x_NE, weight, targets_N, cap, bias=bias)

        first = (self.spec.embedding.rows or (0,))[0]

        def summed(x: Tensor, targets: Tensor) -> Tensor:
            return cross_entropy(self._capped(self._part(x)), targets, first, self.ops.ranks)

        parts = (each.split(max(MOST_LOGITS // self.spec.vocab_size, 1)) for each in (x_NE, targets_N))
        made = [checkpoint(summed, *part, use_reentrant=False) for part in zip(*parts, strict=True)]
        return torch.stack(made).sum() / len(targets_N)

    @contextlib.contextmanager
    def collected(self) -> Iterator[list[Routing | None]]:
        """What each layer's router returns meanwhile."""
        found: list[Routing | None] = [None] * len(self.layers)
        routers = {i: layer.ffn.router for i, layer in enumerate(self.layers) if isinstance(layer.ffn, MoE)}
        hooks = [r.register_forward_hook(lambda *call, i=i: found.__setitem__(i, call[-1])) for i, r in routers.items()]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def logits(self, x_BTE: Tensor) -> Tensor:
        """Final norm and head: hidden states `[B, T, E]` -> logits `[B, T, V]`; of a stage without a head, no value."""
        if self.spec.embedding.rows == (0, 0):
            return x_BTE[..., :0]
        return self.project(self.norm(x_BTE))

    def project(self, x_BTE: Tensor) -> Tensor:
        """The head alone: normed hidden states `[B, T, E]` -> logits `[B, T, V]`."""
        logits, scale = self._product(x_BTE), self.spec.logit_scale
        return self._capped(logits if scale == 1 else logits * scale)

    def _product(self, x_BTE: Tensor) -> Tensor:
        return self.ops.ranks.joined(self._part(x_BTE), self.spec.vocab_size)

    def _part(self, x_BTE: Tensor) -> Tensor:
        """Of what the head gives the values that are here."""
        head: Any = self.head or functools.partial(product, self.embedding, "weight", self.ops)
        made = head(self.ops.ranks.entered(x_BTE))
        return made[..., : self.spec.vocab_size].contiguous() if self.spec.embedding.unused else made

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.spec.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def step(
        self,
        tokens_BT: Tensor,
        cache: Cache | None,
        position_B: Tensor | None = None,
        x_BTE: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> Step:
        """What all layers share while these tokens go through, whose embedding is x."""
        count, device = tokens_BT.shape[1], tokens_BT.device
        start, capacity = (cache.length, cache.capacity) if cache is not None else (0, count)
        padding_B = cache.padding_B if cache is not None else None
        positions_BT, real = self._positions(tokens_BT, cache, position_B, starts_BT)
        first, start = (start, start) if position_B is None else (position_B, capacity - 1)
        lengths = self._lengths(cache, count)
        rotary = {rope: table(positions_BT, lengths, self.dtype) for rope, table in self._rotary.items()}
        visible = {
            window: Visibility(
                start, count, window if window and window < capacity else None, padding_B, device, position_B, starts_BT
            )
            for window in self._windows
        }
        slots = {window: each.slots() for window, each in visible.items()}
        told = embedded = None
        if self.per_layer is not None or self._looks_back:
            embedded = self.embed(tokens_BT) if x_BTE is None else x_BTE
            told = self.per_layer(tokens_BT, embedded) if self.per_layer is not None else None
        return Step(start, rotary, visible, slots, positions_BT, first, real, embedded, told, tokens=tokens_BT)

    def _positions(
        self, tokens_BT: Tensor, cache: Cache | None, position_B: Tensor | None, starts_BT: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Int64 `[B or 1, T]`, and where a row is padded, if one is among these tokens, what is not, bool `[B, T, 1]`.
        Raises ValueError beyond the last learned position."""
        start, count = 0 if cache is None else cache.length, tokens_BT.shape[1]
        capacity = count if cache is None else cache.capacity
        assert start + count <= capacity, f"{start + count} positions in a cache of {capacity}"
        learned = self.spec.embedding.positions
        if learned is not None and start + count > learned.count:
            raise ValueError(f"{start + count} positions, and the model has learned {learned.count}: shorten the text")
        every = torch.arange(start, start + count, device=tokens_BT.device)[None]
        positions_BT = every if position_B is None else position_B[:, None]
        positions_BT = positions_BT if starts_BT is None else positions_BT - starts_BT
        start = start if position_B is None else capacity - 1
        if cache is None or cache.padding_B is None:
            return positions_BT, None
        positions_BT = positions_BT - cache.padding_B[:, None]
        real = (positions_BT >= 0).unsqueeze(-1) if start < max(cache.padding or [0]) else None
        return positions_BT.clamp(min=0), real  # a padded position counts as 0: it is never looked at

    def _lengths(self, cache: Cache | None, count: int) -> tuple[int, ...]:
        """How long each row is with `count` more positions, or all rows are: some rotary scalings go by it."""
        if cache is None:
            return (count,)
        end = max(cache.length + count, cache.prompt_length)
        return tuple(end - padding for padding in cache.padding or [0])

    def turning(self, cache: Cache) -> list[Tensor]:
        """The rotary frequencies that one more position takes, the same tensors while they are the same."""
        return self.turned(self._lengths(cache, 1))

    def turned(self, lengths: tuple[int, ...]) -> list[Tensor]:
        """The rotary frequencies of sequences of these lengths, the same tensors while they are the same."""
        device = self.embedding.weight.device
        return [each for table in self._rotary.values() for each in table.kept(lengths, device)]

    def destinations(self) -> dict[str, Destination]:
        """Where a checkpoint's tensors go (`filling.destinations`)."""
        return destinations(self)


def skeleton(decoder: spec.Decoder, dtype: torch.dtype, ops: Ops = REFERENCE) -> Decoder:
    """The model without memory (`filling.on_meta`)."""
    return on_meta(lambda: Decoder(decoder, ops), dtype)


def next_token_loss(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats of each token given the ones before it; tokens `[B, T]`, logits of the same T."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
