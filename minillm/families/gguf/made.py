"""The tensors of a GGUF file, made of a model's parameters: what `weights/gguf/tensors.py` and `gguf_rules.py` undo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minillm.families.gguf import rules as gguf_rules
from minillm.families.gguf import states
from minillm.families.gguf.architectures import NORM_OFFSETS
from minillm.families.gguf.on_device import TABLE, unused
from minillm.spec import GQA, MLA, Decoder, GatedDeltaNet, MoE
from minillm.weights.gguf.tensors import DECAY, K_UP, KV_UP, V_UP, shifted, stack
from minillm.weights.rows import Rows
from minillm.weights.rules import Destination
from minillm.weights.save import published

FIRST = ("output.weight", "token_embd.weight", "output_norm.weight")


@dataclass(frozen=True)
class Named:
    """A tensor of a file: the rows of parameters that it is made of, in order, and what becomes of all of them. One
    made of none has zeros, which llama.cpp wants and does not use."""

    name: str
    shape: tuple[int, ...]
    parts: Sequence[Destination]
    change: Callable[[Tensor], Tensor] | None = None

    def pieces(self, rows: Rows) -> Iterator[Tensor]:
        """Its values in order, fp32."""
        if not self.parts:
            yield torch.zeros(self.shape)
            return
        if self.change is not None:
            yield self.change(torch.cat([piece for part in self.parts for piece in rows.pieces(part)]))
            return
        for part in self.parts:
            yield from rows.pieces(part)


def named(decoder: Decoder, architecture: str, destinations: Mapping[str, Destination]) -> list[Named]:
    """All tensors of a decoder's parameters, layer by layer."""
    attention = next(iter(decoder.attentions), None)
    heads = (attention.num_heads, attention.num_kv_heads) if isinstance(attention, GQA) else ()
    latent_queries = isinstance(attention, MLA) and attention.q_rank is not None
    nets = (layer.attention for layer in decoder.layers if isinstance(layer.attention, GatedDeltaNet))
    sizes = next(((net.num_k_heads, net.num_v_heads, net.k_dim, net.v_dim) for net in nets), None)
    beside = any(isinstance(layer.ffn, MoE) and layer.ffn.norm is not None for layer in decoder.layers)
    table = gguf_rules.table(architecture, latent_queries, heads, sizes, beside, states.of_decoder(decoder))
    offset = NORM_OFFSETS.get(architecture, 0.0)
    joined: dict[str, list[Destination]] = {}
    try:
        found = published(table, destinations)
    except ValueError as error:
        raise ValueError(f"llama.cpp's {architecture} is another model than this one: {error}") from None
    stacks = set[str]()
    for name, to in found.items():
        if whole := stack(name):
            stacks.add(whole)
        joined.setdefault(whole or name, []).append(to)
    made = [Named(name, shape, ()) for name, shape in unused(decoder, architecture)]
    for name, parts in joined.items():
        if name.endswith(KV_UP) and isinstance(attention, MLA):
            made += _apart(name.removesuffix(KV_UP), parts, attention)
        else:
            made.append(_plain(name, parts, offset if shifted(name) else 0.0, name in stacks))
        if name == TABLE:
            made.append(_every_token(made.pop(), decoder.vocab_size))
    return sorted(made, key=lambda each: _place(each.name))


def _every_token(table: Named, count: int) -> Named:
    """With a row for each of `count` tokens: those without one have the first."""
    rows, size = table.shape
    if rows == count:
        return table
    return replace(table, shape=(count, size), change=lambda each: torch.cat((each, each[:1].expand(count - rows, -1))))


def _plain(name: str, parts: list[Destination], offset: float, stacked: bool) -> Named:
    first = parts[0]
    shape = first.shape if first.layout is None else first.layout.shape(first.shape)
    shape = (len(parts), *shape) if stacked else shape
    if name.endswith(DECAY):
        restore = first.layout.restore if first.layout else None
        return Named(name, shape, parts, lambda values: -(restore(values) if restore else values).exp())
    if offset:
        return Named(name, shape, parts, lambda values: values + offset)
    return Named(name, shape, parts, first.layout.restore if first.layout else None)


def _apart(layer: str, parts: list[Destination], attention: MLA) -> Iterator[Named]:
    """Of each head the rows of keys, as columns, and those of values."""
    heads, rank, nope, inner = attention.num_heads, attention.kv_rank, attention.nope_dim, attention.v_dim

    def keys(rows: Tensor) -> Tensor:
        return rows.view(heads, nope + inner, rank)[:, :nope].transpose(1, 2)

    def values(rows: Tensor) -> Tensor:
        return rows.view(heads, nope + inner, rank)[:, nope:]

    yield Named(layer + K_UP, (heads, rank, nope), parts, keys)
    yield Named(layer + V_UP, (heads, inner, rank), parts, values)


def _place(name: str) -> tuple[int, str]:
    if name in FIRST:
        return -1, str(FIRST.index(name))
    number = name.split(".")[1]
    return (int(number), name) if number.isdigit() else (-1, name)
