"""The decoder: embedding, a stack of blocks built from their specs, a norm, a head.

Shapes: B batch, T new tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm import spec
from minillm.attention import GroupedQueryAttention, Step
from minillm.cache import Cache, LayerCache, key_positions, visible
from minillm.ffn import GatedMLP
from minillm.linear import Linear, linear
from minillm.norm import Norm
from minillm.ops import REFERENCE, Ops
from minillm.rope import Rotary
from minillm.weights.rules import Destination

# The module that each kind of spec is built as, called with (spec, hidden_size, ops).
BUILD: dict[type, Callable[[Any, int, Ops], nn.Module]] = {
    spec.GQA: GroupedQueryAttention,
    spec.GatedMLP: GatedMLP,
}


class Block(nn.Module):
    """One layer: h = x + attention(norm(x)), then h + ffn(norm(h))."""

    def __init__(self, layer: spec.Layer, hidden_size: int, ops: Ops):
        super().__init__()
        self.attention_norm = Norm(layer.attention_norm, hidden_size, ops)
        self.attention = BUILD[type(layer.attention)](layer.attention, hidden_size, ops)
        self.ffn_norm = Norm(layer.ffn_norm, hidden_size, ops)
        self.ffn = BUILD[type(layer.ffn)](layer.ffn, hidden_size, ops)

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None) -> Tensor:
        h = x + self.attention(self.attention_norm(x), step, cache)
        return h + self.ffn(self.ffn_norm(h))


class Embedding(nn.Module):
    """tokens int64 `[B, T]` -> rows of `weight`, `[B, T, E]`.

    Not nn.Embedding: that draws its first values even on the meta device, where PyTorch then loads 150 MB of Python.
    """

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return F.embedding(tokens_BT, self.weight)


class Decoder(nn.Module):
    """tokens int64 `[B, T]` -> logits `[B, T, V]` in the model's dtype."""

    def __init__(self, decoder: spec.Decoder, ops: Ops = REFERENCE):
        super().__init__()
        self.spec = decoder
        self.embedding = Embedding(decoder.vocab_size, decoder.hidden_size)
        self.layers = nn.ModuleList(Block(layer, decoder.hidden_size, ops) for layer in decoder.layers)
        self.norm = Norm(decoder.final_norm, decoder.hidden_size, ops)
        self.head = None if decoder.tied else Linear(decoder.hidden_size, decoder.vocab_size)
        self._rotary = {layer.attention.rope: Rotary(layer.attention.rope) for layer in decoder.layers}
        self._windows = {layer.attention.window for layer in decoder.layers}

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None, last_only: bool = False) -> Tensor:
        """Logits `[B, T, V]`, or `[B, 1, V]` of the last position with `last_only`.

        With a cache the tokens continue what it holds, and it grows by T; without, they stand alone.
        """
        step = self._step(tokens_BT, cache)
        x_BTE = self.embedding(tokens_BT)
        for index, layer in enumerate(self.layers):
            x_BTE = layer(x_BTE, step, cache.layers[index] if cache is not None else None)
        if cache is not None:
            cache.length += tokens_BT.shape[1]
        return self.logits(x_BTE[:, -1:] if last_only else x_BTE)

    def logits(self, x_BTE: Tensor) -> Tensor:
        """Final norm and head: hidden states `[B, T, E]` -> logits `[B, T, V]`."""
        x_BTE = self.norm(x_BTE)
        return linear(x_BTE, self.embedding.weight) if self.head is None else self.head(x_BTE)

    def _step(self, tokens_BT: Tensor, cache: Cache | None) -> Step:
        count, device = tokens_BT.shape[1], tokens_BT.device
        start, capacity = (cache.length, cache.capacity) if cache is not None else (0, count)
        padding_B = cache.padding_B if cache is not None else None
        assert start + count <= capacity, f"{start + count} positions in a cache of {capacity}"
        queries = torch.arange(start, start + count, device=device)
        positions_BT = queries[None]
        if padding_B is not None:  # a padded position counts as 0: it is never looked at
            positions_BT = (positions_BT - padding_B[:, None]).clamp(min=0)
        dtype = self.norm.weight.dtype
        padding = (cache.padding if cache is not None else None) or [0]
        end = max(start + count, cache.prompt_length if cache is not None else 0)
        lengths = tuple(end - pad for pad in padding)
        rotary = {rope: table(positions_BT, lengths, dtype) for rope, table in self._rotary.items()}
        masks: dict[int | None, Tensor | None] = {}
        for window in self._windows:
            narrow = window is not None and start + count > window
            if padding_B is None and (count == 1 or (start == 0 and not narrow)):
                masks[window] = None  # one query sees all that its cache returns; a fresh prompt is plainly causal
            else:
                keys = key_positions(window, capacity, start, count, device)
                masks[window] = visible(queries, keys, window, padding_B)
        return Step(start, rotary, masks)

    def destinations(self) -> dict[str, Destination]:
        """Where a checkpoint's tensors go: each parameter, or each named row block of a fused one as "name[part]"."""
        found: dict[str, Destination] = {}
        for name, parameter in self.named_parameters():
            parts = getattr(self.get_submodule(name.rpartition(".")[0]), "parts", None)
            start = 0
            for part, rows in (parts or {"": parameter.shape[0]}).items():
                key = f"{name}[{part}]" if part else name
                found[key] = Destination(name, start, (rows, *parameter.shape[1:]))
                start += rows
        return found

    def pack(self) -> None:
        """Give every linear layer oneDNN's layout (see `linear.py`): for inference on a CPU."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()


def next_token_loss(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats of each token given the ones before it; tokens `[B, T]`, logits of the same T."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
