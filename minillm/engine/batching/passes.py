"""From what is planned to one pass of the model: tokens, positions, tables and slots as tensors.

Shapes: N tokens, n of them single, M blocks of a sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minillm.engine.batching.request import Request
from minillm.engine.batching.scheduler import Work
from minillm.engine.batching.store import Store
from minillm.engine.inserted import Inserted
from minillm.model.decoder import Decoder
from minillm.model.pools import Group, Pools
from minillm.model.ragged import Inserted as Inserting
from minillm.model.ragged import Piece, Ragged
from minillm.ops.paged import Paged
from minillm.ops.visibility import Visibility

PIECE = 256  # tokens that a stage works on while others work on those before and behind them


@dataclass(frozen=True)
class Single:
    """One token each of n sequences, where all that changes from step to step lies in memory."""

    tokens: Tensor  # int64 [n]
    positions: Tensor  # int64 [n]
    tables: Mapping[Group, Tensor]  # int32 [n, M]; of states [n, 1]
    lengths: tuple[int, ...]  # of the sequences, for rotary scalings that go by them
    turning: Tensor | None = None  # int64 [n]: what they are rotated by, where that is not their position

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
        turning = None
        if any(each.shift for each, _ in rows):
            turning = torch.tensor([at + each.shift for each, at in rows], dtype=torch.int64, device=device)
        return cls(drawn, torch.tensor(positions, dtype=torch.int64, device=device), tables, lengths, turning)

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
        return Ragged(len(self.tokens), paged, self.positions, states, slots, turning=self.turning)


@dataclass(frozen=True)
class Part:
    """Several tokens of one sequence, the first at position `first`, its blocks, and what of its prompt is no text."""

    ids: list[int]
    first: int
    tables: Mapping[Group, list[int]]
    inserted: Inserted | None = None


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
            parts.append(Part(request.ids(first, last), first, tables, request.row.inserted))
            lengths += turned_as(request, store, first, last)
        return cls(single, tuple(parts), tuple(lengths))

    def pieces(self, size: int) -> list[Mixed]:
        """The same with texts cut into pieces of so many tokens, in order; other inputs stay whole."""
        if all(len(part.ids) <= size for part in self.parts) or any(part.inserted for part in self.parts):
            return [self]
        alone, at = self.single, len(self.single.tokens)
        none = replace(alone, tokens=alone.tokens[:0], positions=alone.positions[:0], lengths=(), turning=None)
        none = replace(none, tables={group: table[:0] for group, table in alone.tables.items()})
        found = [Mixed(alone, (), self.lengths[:at])] if at else []
        for part in self.parts:
            for first in range(0, len(part.ids), size):
                ids = part.ids[first : first + size]
                piece = replace(part, ids=ids, first=part.first + first)
                found.append(Mixed(none, (piece,), self.lengths[at : at + len(ids)]))
                at += len(ids)
        return found


def hidden(model: Decoder, single: Single, pools: Pools) -> Tensor:
    """`[1, n, E]` behind the last layer."""
    ragged = single.ragged(pools.size)
    return model.hidden_of_many(single.tokens, single.positions, single.lengths or (0,), ragged, pools.layers)


def hidden_of(model: Decoder, mixed: Mixed, pools: Pools) -> Tensor:
    """`[1, N, E]` after the last layer. Stages work on several pieces at once."""
    ranks = model.ops.ranks
    if not ranks.staged:
        return hidden_at_once(model, mixed, pools)
    with ranks.flowing():
        made = [hidden_at_once(model, each, pools) for each in mixed.pieces(PIECE)]
    return torch.cat(made, dim=1)


def hidden_at_once(model: Decoder, mixed: Mixed, pools: Pools) -> Tensor:
    """`[1, N, E]`, in one pass through all layers that are here."""
    single, device = mixed.single, model.embedding.weight.device
    base = single.ragged(pools.size)
    tokens, positions = [single.tokens], [single.positions]
    slots = {group: [each[0]] for group, each in base.slots.items()}
    made, at = [], len(single.tokens)
    for part in mixed.parts:
        count = len(part.ids)
        tokens.append(torch.tensor(part.ids, device=device))
        positions.append(torch.arange(part.first, part.first + count, device=device))
        visible = {group: seen(group, part.first, count, device, ahead(part, group)) for group in slots}
        keys = {group: located(part.tables[group], each.key_positions, pools.size) for group, each in visible.items()}
        for group in keys:
            slots[group].append(located(part.tables[group], positions[-1], pools.size))
        state = part.tables["state"][0] if "state" in part.tables else None
        made.append(Piece(slice(at, at + count), part.first, visible, keys, state))
        at += count
    places = {group: torch.cat(each)[None] for group, each in slots.items()}
    given = inserted_into(mixed, device), turning_of(mixed, torch.cat(positions))
    ragged = Ragged(base.singles, base.paged, base.position_N, base.states, places, tuple(made), *given)
    return model.hidden_of_many(torch.cat(tokens), torch.cat(positions), mixed.lengths or (0,), ragged, pools.layers)


def ahead(part: Part, group: Group) -> Tensor | None:
    """The last position that each token of a part sees in layers of a group, where that is not its own."""
    if part.inserted is None or (part.inserted.windowed and not isinstance(group, int)):
        return None
    return part.inserted.last_seen(part.first, part.first + len(part.ids))


def inserted_into(mixed: Mixed, device: torch.device) -> Inserting | None:
    """The embeddings of a pass that are not those of its tokens."""
    at, embeddings, deep, start = [], [], [], len(mixed.single.tokens)
    for part in mixed.parts:
        given, last = part.inserted, part.first + len(part.ids)
        if given is not None and (found := given.within(part.first, last)).start < found.stop:
            at.append(given.at[found] - part.first + start)
            embeddings.append(given.embeddings[found])
            deep.append([each[found] for each in given.deep])
        start += len(part.ids)
    if not at:
        return None
    layers = tuple(torch.cat(each).to(device) for each in zip(*deep, strict=True))
    told_as = next(each.inserted.told_as for each in mixed.parts if each.inserted is not None)
    return Inserting(torch.cat(at).to(device), torch.cat(embeddings).to(device), layers, told_as)


def turning_of(mixed: Mixed, position_N: Tensor) -> Tensor | None:
    """What the tokens of a pass are rotated by, `[N]` or `[N, P]`, where it is not the position of each."""
    single, given = mixed.single, [part.inserted for part in mixed.parts]
    turned = [each.places for each in given if each is not None and each.places is not None]
    if single.turning is None and not turned:
        return None
    singles = single.positions if single.turning is None else single.turning
    if not turned:
        return torch.cat((singles, position_N[len(singles) :]))
    pairs = turned[0].shape[1]
    found = [singles[:, None].expand(-1, pairs)]
    for part in mixed.parts:
        last = part.first + len(part.ids)
        every = torch.arange(part.first, last)[:, None].expand(-1, pairs)
        found.append((part.inserted.turned(part.first, last, pairs) if part.inserted else every).to(singles.device))
    return torch.cat(found)


def alone(pair: tuple[Request, int], store: Store) -> bool:
    """Whether tokens of a request go through as rows of their own: the one that is decoded, and guesses behind it, but
    for a state, which has one token after the other, and a prompt that is not text alone."""
    request, count = pair
    if request.inserting:
        return False
    return count == 1 or (count == 1 + len(request.guesses) and "state" not in store.groups)


def turned_as(request: Request, store: Store, first: int, last: int) -> tuple[int, ...]:
    """How long the sequence counts as where positions first … last - 1 are turned, for rotary scalings that go by it:
    LongRoPE's by what is known now; dynamic ones know a prompt as a whole, and what follows as it comes."""
    if store.long:
        return (request.length,) * (last - first)
    if store.dynamic:
        return tuple(max(position + 1, len(request.row.prompt)) for position in range(first, last))
    return ()


def seen(group: Group, start: int, count: int, device: torch.device, ahead: Tensor | None = None) -> Visibility:
    """What a piece sees in layers of a group; `ahead`: up to which position, where it is not a query's own."""
    window = group if isinstance(group, int) and group < start + count else None
    return Visibility(start, count, window, None, device, last_T=None if ahead is None else ahead.to(device))


def located(table: list[int], position: Tensor, size: int) -> Tensor:
    """The slots of the keys of positions, int64 `[S]` each."""
    return torch.tensor(table, device=position.device)[position // size] * size + position % size


def tabled(tables: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Tables side by side, int32 `[n, M]`, M being a power of two: few sizes, so that recordings last."""
    longest = max(map(len, tables), default=1)
    made = np.zeros((len(tables), 1 << (longest - 1).bit_length()), np.int32)
    for row, table in zip(made, tables, strict=True):
        row[: len(table)] = table
    return torch.from_numpy(made).to(device)
