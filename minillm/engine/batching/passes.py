"""From what is planned to one pass of the model: tokens, positions, tables and slots as tensors.

Shapes: N tokens, n of them single, M blocks of a sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm.engine.batching.request import Request
from minillm.engine.batching.scheduler import Work
from minillm.engine.batching.store import Store
from minillm.model.decoder import Decoder
from minillm.model.pools import Group, Pools
from minillm.model.ragged import Piece, Ragged
from minillm.ops.paged import Paged
from minillm.ops.visibility import Visibility


@dataclass(frozen=True)
class Single:
    """One token each of n sequences, where all that changes from step to step lies in memory."""

    tokens: Tensor  # int64 [n]
    positions: Tensor  # int64 [n]
    tables: Mapping[Group, Tensor]  # int32 [n, M]; of states [n, 1]
    lengths: tuple[int, ...]  # of the sequences, for rotary scalings that go by them

    @classmethod
    def of(cls, work: Work, store: Store, device: torch.device, drawn: Tensor | None = None) -> Single:
        """The next tokens of each, as rows of their own; int64 `[n]` where they were `drawn` and only the device knows
        them. A guess sees the tokens before it, as their keys are stored before any row attends."""
        rows = [(each, each.computed + index) for each, count in work for index in range(count)]
        tables = {group: tabled([each.tables[group] for each, _ in rows], device) for group in store.groups}
        positions = [at for _, at in rows]
        lengths = sum((turned_as(each, store, at, at + 1) for each, at in rows), ())
        if drawn is None:
            known = [each.ids(at, at + 1)[0] for each, at in rows]
            drawn = torch.tensor(known, dtype=torch.int64, device=device)
        return cls(drawn, torch.tensor(positions, dtype=torch.int64, device=device), tables, lengths)

    def ragged(self, size: int) -> Ragged:
        """Where their keys lie; computed from the tensors alone, so that it can be recorded."""
        paged: dict[Group, Paged] = {
            group: Paged.at(self.positions, table, size, group if isinstance(group, int) else None)
            for group, table in self.tables.items()
            if group != "state"
        }
        slots: dict[Group, Tensor] = {
            group: each.slots(self.positions[:, None])[:, 0][None] for group, each in paged.items()
        }
        states = self.tables["state"][:, 0].long() if "state" in self.tables else None
        return Ragged(len(self.tokens), paged, self.positions, states, slots)


@dataclass(frozen=True)
class Part:
    """Several tokens of one sequence, the first at position `first`, and its blocks."""

    ids: list[int]
    first: int
    tables: Mapping[Group, list[int]]


@dataclass(frozen=True)
class Mixed:
    """Tokens of many sequences: those that go through alone, then parts; `lengths` are those of all tokens."""

    single: Single
    parts: tuple[Part, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, work: Work, store: Store, device: torch.device) -> Mixed:
        """Those of the work in its order, in which those `alone` are first."""
        single = Single.of([pair for pair in work if alone(pair, store)], store, device)
        parts, lengths = [], [*single.lengths]
        for request, count in (pair for pair in work if not alone(pair, store)):
            first, last = request.computed, request.computed + count
            tables = {group: request.tables[group] for group in store.groups}
            parts.append(Part(request.ids(first, last), first, tables))
            lengths += turned_as(request, store, first, last)
        return cls(single, tuple(parts), tuple(lengths))


def hidden(model: Decoder, single: Single, pools: Pools) -> Tensor:
    """`[1, n, E]` behind the last layer."""
    ragged = single.ragged(pools.size)
    return model.hidden_of_many(single.tokens, single.positions, single.lengths or (0,), ragged, pools.layers)


def hidden_of(model: Decoder, mixed: Mixed, pools: Pools) -> Tensor:
    """`[1, N, E]` behind the last layer."""
    single, device = mixed.single, model.embedding.weight.device
    base = single.ragged(pools.size)
    tokens, positions = [single.tokens], [single.positions]
    slots = {group: [each[0]] for group, each in base.slots.items()}
    made, at = [], len(single.tokens)
    for part in mixed.parts:
        count = len(part.ids)
        tokens.append(torch.tensor(part.ids, device=device))
        positions.append(torch.arange(part.first, part.first + count, device=device))
        visible = {group: seen(group, part.first, count, device) for group in slots}
        keys = {group: located(part.tables[group], each, pools.size) for group, each in visible.items()}
        for group, found in keys.items():
            slots[group].append(found[-count:])
        state = part.tables["state"][0] if "state" in part.tables else None
        made.append(Piece(slice(at, at + count), part.first, visible, keys, state))
        at += count
    places = {group: torch.cat(each)[None] for group, each in slots.items()}
    ragged = Ragged(base.singles, base.paged, base.position_N, base.states, places, tuple(made))
    return model.hidden_of_many(torch.cat(tokens), torch.cat(positions), mixed.lengths or (0,), ragged, pools.layers)


def alone(pair: tuple[Request, int], store: Store) -> bool:
    """Whether tokens of a request go through as rows of their own: the one that is decoded, and guesses behind it, but
    for a state, which has one token after the other."""
    request, count = pair
    return count == 1 or (count == 1 + len(request.guesses) and "state" not in store.groups)


def turned_as(request: Request, store: Store, first: int, last: int) -> tuple[int, ...]:
    """How long the sequence counts as where positions first … last - 1 are turned, for rotary scalings that go by it:
    LongRoPE's by what is known now; dynamic ones know a prompt as a whole, and what follows as it comes."""
    if store.long:
        return (request.length,) * (last - first)
    if store.dynamic:
        return tuple(max(position + 1, len(request.row.prompt)) for position in range(first, last))
    return ()


def seen(group: Group, start: int, count: int, device: torch.device) -> Visibility:
    """What a piece sees in layers of a group."""
    window = group if isinstance(group, int) and group < start + count else None
    return Visibility(start, count, window, None, device)


def located(table: list[int], visible: Visibility, size: int) -> Tensor:
    """The slots of the keys that a piece may see, int64 `[S]`."""
    position = visible.key_positions
    return torch.tensor(table, device=position.device)[position // size] * size + position % size


def tabled(tables: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Tables side by side, int32 `[n, M]`, M being a power of two: few sizes, so that recordings last."""
    longest = max(map(len, tables), default=1)
    made = np.zeros((len(tables), 1 << (longest - 1).bit_length()), np.int32)
    for row, table in zip(made, tables, strict=True):
        row[: len(table)] = table
    return torch.from_numpy(made).to(device)
