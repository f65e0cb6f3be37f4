"""Which parameters stay quantised: in segments of rows, each in the form that the tensors of its rows are stored in.

A fused parameter takes several tensors. Those of one form lie together, so that one product computes them; others have
a segment of their own. Scales are never merged. What a layout turns otherwise than row by row, and what lies between
the rows of experts in other forms, becomes plain.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from minillm.weights.checkpoint import Checkpoint, Stored
from minillm.weights.formats.packed import Made
from minillm.weights.forms import ORDER, Packer, Packing, Plain, Segment
from minillm.weights.gguf.tensors import Blocks, InBlocks
from minillm.weights.grouped import Fields, Grouped
from minillm.weights.ints import Integers
from minillm.weights.rules import Destination, Plan
from minillm.weights.tensorfile import blocks
from minillm.weights.threads import in_threads

PIECE, AS_STORED = 2**18, 8  # values packed at a time; times as many where they are not quantised first
Held = Mapping[str, tuple[Segment, ...]]  # parameter -> its segments


class Rows(Protocol):
    """What gives rows of a matrix in the form that they go into."""

    def fields(self, start: int, stop: int) -> Fields:
        """Rows start … stop - 1."""
        ...


def segments(
    checkpoint: Checkpoint, planned: Plan, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, tile: int,
    formats: Mapping[str, Integers] | None = None,
) -> Held:  # fmt: skip
    """The segments of each parameter of `shapes`, `[O, I]` or `[E, O, I]`, that quantised tensors fill, or any where
    `formats` says what to quantise them to; others have none. Forms that lie in tiles do so in those of `tile` rows,
    but for experts that are no whole tiles."""
    filling: dict[str, list[tuple[Destination, Stored]]] = {}
    for tensor, to in planned.assignments.items():
        if to.parameter in shapes:
            filling.setdefault(to.parameter, []).append((to, checkpoint.stored[tensor]))
    found: dict[str, tuple[Segment, ...]] = {}
    for name, given in filling.items():
        given.sort(key=lambda each: each[0].start)
        if formats and name in formats:
            into = replace(formats[name].form, tile=tile)
            pieces: list[Segment | None] = [Segment(to.start, to.shape[0], into) for to, _ in given]
        else:
            pieces = [_piece(to, stored, dtype, tile) for to, stored in given]
        known = [piece for piece in pieces if piece is not None]
        if len(known) < len(pieces) or all(isinstance(piece.form, Plain) for piece in known):
            continue
        if len(shapes[name]) == 2:
            found[name] = tuple(_merged(known))
        elif len({piece.form for piece in known}) == 1 and not any(piece.ordered for piece in known):
            ends = [shapes[name][1], *(each for piece in known for each in (piece.start, piece.rows))]
            form = known[0].form
            whole = all(each % form.tile == 0 for each in ends)
            form = form if whole or not isinstance(form, Grouped) else replace(form, tile=1)
            found[name] = (Segment(0, shapes[name][1], form),)
    return found


def _piece(to: Destination, stored: Stored, dtype: torch.dtype, tile: int) -> Segment | None:
    """The rows of one tensor; None where they cannot stay as they are."""
    form: Packing | None = getattr(stored, "form", None)
    if form is None:
        plain = len(to.shape) == 2 and getattr(stored, "title", None) is None
        return Segment(to.start, to.shape[0], Plain(dtype)) if plain else None
    if to.layout is not None and not (to.layout.by_rows and (len(stored.shape) == 2 or to.layout.stacked)):
        return None
    made = replace(form, tile=tile) if isinstance(form, Grouped) else form
    return Segment(to.start, to.shape[0], made, getattr(stored, "order", None) is not None)


def _merged(pieces: list[Segment]) -> Iterator[Segment]:
    """Neighbours of one form as one segment."""
    last: Segment | None = None
    for piece in pieces:
        if last is not None:
            alike = piece.form == last.form and not (piece.ordered or last.ordered)
            if alike and last.rows % last.form.tile == 0:
                last = replace(last, rows=last.rows + piece.rows)
                continue
            yield last
        last = piece
    if last is not None:
        yield last


def told(checkpoint: Checkpoint, planned: Plan, shapes: Mapping[str, tuple[int, ...]], held: Held) -> list[str]:
    """What users are told of quantised tensors that fill the parameters of `shapes` and cannot be multiplied as they
    lie."""
    each_time, at_once = collections.Counter[str](), collections.Counter[str]()
    for tensor, to in planned.assignments.items():
        stored = checkpoint.stored[tensor]
        if (title := getattr(stored, "title", None)) is None or to.parameter not in shapes:
            continue
        if to.parameter not in held:
            at_once[title] += stored.shape[0] if len(stored.shape) == 3 else 1
        elif isinstance(stored, InBlocks) and isinstance(stored.form, Blocks):
            each_time[title] += 1
    notes = {
        "stay as they are stored, and are dequantised each time they are used": each_time,
        "were dequantised, as their parameters cannot stay quantised": at_once,
    }
    return [
        f"{counts.total()} matrices {what}: {', '.join(f'{counts[each]} in {each}' for each in sorted(counts))}"
        for what, counts in notes.items()
        if counts
    ]


def apart(stored: Stored, to: Destination) -> Iterator[tuple[Stored, Destination]]:
    """Where a tensor has the quantised matrices of all experts, each of them and the rows that it fills, one at a time;
    any other as it is."""
    if not isinstance(stored, Made) or not stored.stacked or (to.layout is not None and not to.layout.stacked):
        yield stored, to
        return
    rows, layout = to.shape[0] // stored.shape[0], to.layout and to.layout.of_one
    for e in range(stored.shape[0]):
        shape = (rows, *to.shape[1:])
        yield stored.one(e), replace(to, start=to.start + e * rows, shape=shape, layout=layout, whole=None)


def fill(held: Sequence[Segment], stored: Stored | Rows, to: Destination, place: Callable[[str], Tensor]) -> None:
    """Pack the rows of a tensor into the parts of their segment, which `place` gives by what is added to their names.
    Of a parameter with experts there is one segment."""
    segment = next(each for each in reversed(held) if each.start <= to.start)
    form, first = segment.form, (to.start - segment.start) // segment.form.tile
    if segment.ordered:
        place(f"{segment.mark}{ORDER}").copy_(stored.order)  # type: ignore[union-attr, arg-type]
    shapes = form.parts(to.shape)
    flat = {name: place(f"{segment.mark}{name}").view(-1, *shape[1:]) for name, (shape, _) in shapes.items()}

    def put(start: int, parts: Mapping[str, Tensor]) -> None:
        at = first + start // form.tile
        for name, part in parts.items():
            flat[name][at : at + len(part)] = part

    for _ in packed(cast(Packing, form), stored, to, put):  # as all that `segments` has are
        pass


def packed(
    form: Packer, stored: Stored | Rows, to: Destination, put: Callable[[int, dict[str, Tensor]], Any] | None = None
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The rows that a tensor fills as the parts of a form, in order: (number of the first row, parts). `put` is called
    with these in the thread that made them: memory that nobody has used yet takes as long to get as to fill."""
    count = to.shape[0]
    laid = None if to.layout is None else _fields(stored, 0, count).map(_turned(to))
    piece = PIECE * AS_STORED if isinstance(stored, Made) and stored.by_rows else PIECE
    step = max(piece // to.shape[-1] // form.tile, 1) * form.tile

    def pack(block: tuple[int, int]) -> tuple[int, dict[str, Tensor]]:
        parts = form.pack(_fields(stored, *block) if laid is None else laid.rows(slice(*block)))
        if put is None:
            return block[0], parts
        put(block[0], parts)
        return block[0], {}

    return in_threads(pack, blocks(count, step))


def _fields(stored: Stored | Rows, start: int, stop: int) -> Fields:
    if (read := getattr(stored, "fields", None)) is not None:
        return read(start, stop)
    stored = cast(Stored, stored)
    columns = stored.shape[-1]
    return Fields(stored.values(start * columns, stop * columns).view(-1, columns))


def _turned(to: Destination) -> Callable[[Tensor], Tensor]:
    """How rows that lie otherwise come to where a parameter has them."""

    def turn(values: Tensor) -> Tensor:
        made = torch.empty_like(values)
        assert to.layout is not None
        to.layout.copy(values, made)
        return made

    return turn
