"""Examples in batches. Which are in which is a function of (seed, epoch) alone, so that a place in a run is a number.

A row of a batch is one example, or with packing several, one behind the other: the longest that is left goes where it
leaves least room (best fit decreasing). Each example of a row is a document of its own, which sees nothing of those
before it and whose positions begin at 0 (`Visibility.starts_BT`): what it gives is what it gives alone.

Rows are filled up at their end. What is there is seen by nothing before it and has no label.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minillm.model.decoder import IGNORED
from minillm.tune.masking import Example, Pair


@dataclass(frozen=True)
class Batch:
    """int64 `[B, T]` each: tokens; labels, which are the tokens that are learnt and IGNORED elsewhere; and, of packed
    rows, where the document of each position begins. bool `[B, T]`: whether a position is not there to fill a row up.
    `lines` are those that it was made from."""

    tokens_BT: Tensor
    labels_BT: Tensor
    starts_BT: Tensor | None
    real_BT: Tensor
    lines: tuple[int, ...]
    numbers: tuple[int, ...] = ()  # of pairs, by which what the first model says of them is found

    def to(self, device: torch.device) -> Batch:
        starts = None if self.starts_BT is None else self.starts_BT.to(device)
        tokens, labels, real = (each.to(device) for each in (self.tokens_BT, self.labels_BT, self.real_BT))
        return Batch(tokens, labels, starts, real, self.lines, self.numbers)


def packed(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The numbers of the examples that share a row of `capacity` tokens, best fit decreasing."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # of rows that have some: how much, and which; ascending
    for number in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        at = bisect.bisect_left(rooms, (lengths[number], -1))
        if at == len(rooms):
            rows.append([number])
            left, row = capacity - lengths[number], len(rows) - 1
        else:
            room, row = rooms.pop(at)
            rows[row].append(number)
            left = room - lengths[number]
        if left > 0:
            bisect.insort(rooms, (left, row))
    return rows


def rows_of(examples: Sequence[Example], capacity: int | None) -> list[list[int]]:
    """Which examples are in each row: packed to a capacity, or one in each."""
    if capacity is None:
        return [[number] for number in range(len(examples))]
    return packed([len(each.ids) for each in examples], capacity)


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The numbers below `count` in the order of an epoch."""
    numbers = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(numbers)
    return numbers


def steps_of(count: int, batch: int) -> int:
    """The steps of an epoch; the last may have less than `batch` rows."""
    return -(-count // batch)


def groups(count: int, batch: int, seed: int, epoch: int, first: int = 0) -> Iterator[list[int]]:
    """The numbers of the rows of each step of an epoch, from its step `first` on."""
    shuffled = order(count, seed, epoch)
    return (shuffled[start : start + batch] for start in range(first * batch, count, batch))


def collated(rows: Sequence[Sequence[Example]]) -> Batch:
    """A batch with these rows."""
    longest = max(sum(len(each.ids) for each in row) for row in rows)
    tokens, labels = torch.zeros(len(rows), longest, dtype=torch.int64), torch.full((len(rows), longest), IGNORED)
    starts = torch.arange(longest).repeat(len(rows), 1)  # what fills a row up sees itself alone
    real = torch.zeros_like(tokens, dtype=torch.bool)
    for row, examples in enumerate(rows):
        at = 0
        for each in examples:
            ids, stop = torch.tensor(each.ids), at + len(each.ids)
            tokens[row, at:stop] = ids
            labels[row, at:stop] = torch.where(torch.tensor(each.learnt), ids, IGNORED)
            labels[row, at] = IGNORED  # nothing stands before it
            starts[row, at:stop], real[row, at:stop] = at, True
            at = stop
    lines = tuple(each.line for row in rows for each in row)
    return Batch(tokens, labels, starts if any(len(row) > 1 for row in rows) else None, real, lines)


def collated_pairs(pairs: Sequence[Pair], numbers: Sequence[int]) -> Batch:
    """A batch with what is chosen in its first half, and in the other what is rejected."""
    made = collated([[chosen] for chosen, _ in pairs] + [[rejected] for _, rejected in pairs])
    return replace(made, lines=made.lines[: len(pairs)], numbers=tuple(numbers))
