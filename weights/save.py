"""The way back: a model's parameters as the tensors of a published checkpoint, by the same table read backwards; and a
checkpoint as another, of the same numbers or with integers for matrices."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from minillm.guard.writing import complete
from minillm.weights.checkpoint import Checkpoint, Stored, brief
from minillm.weights.holding import apart, packed
from minillm.weights.ints import Integers
from minillm.weights.load import BLOCK_VALUES, Quantised, check_finite
from minillm.weights.rules import DROP, Destination, Plan, Rules, joined, rows, units
from minillm.weights.source import Within
from minillm.weights.tensorfile import BITS, NAMES, Writer, blocks

SHARD_BYTES = 4 * 10**9
NUMBER = re.compile(r"[0-9]+")
Entries = dict[str, tuple[str, tuple[int, ...]]]  # tensors by name, as a `Writer` takes them


def published(rules: Rules, destinations: Mapping[str, Destination]) -> dict[str, Destination]:
    """The names of a checkpoint's tensors and the rows that each is made of; of several names the first rule's. Raises
    ValueError for parameters that no rule is for."""
    found, left, known = dict[str, Destination](), set(destinations), units(destinations)
    alike: dict[str, list[str]] = {}  # by what is left without their numbers: a folder has up to a hundred thousand
    for unit in known:
        alike.setdefault(NUMBER.sub("0", unit), []).append(unit)
    for pattern, target in rules.items():
        if target.startswith(DROP):
            continue
        unit_of = target.partition(": ")[0]
        expression = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[0-9]+)", re.escape(unit_of)))
        for unit in alike.get(NUMBER.sub("0", re.sub(r"\{\w+\}", "0", unit_of)), ()):
            if (match := expression.fullmatch(unit)) and left.issuperset(known[unit]):
                left.difference_update(known[unit])
                named = target.format(**match.groupdict())
                found[pattern.format(**match.groupdict())] = joined(named, known, destinations)
    if left:
        raise ValueError(f"no name of a tensor is known for {brief(sorted(left))}")
    return found


def save(
    path: Path,
    parameters: Mapping[str, Tensor],
    rules: Rules,
    destinations: Mapping[str, Destination],
    beside: Mapping[str, Stored] = {},
    within: Mapping[str, Within] = {},
) -> None:
    """Write one safetensors file in the layout that `rules` reads, with other tensors `beside` them as they are stored,
    and what is `within` one tensor with others there; complete or not at all."""
    named = published(rules, destinations)
    entries = {name: (NAMES[parameters[to.parameter].dtype], to.stored_shape) for name, to in named.items()}
    entries |= {name: (each.word, each.shape) for name, each in beside.items()}
    entries = {key: entry for name, each in entries.items() for key, entry in _whole(name, each, within).items()}
    with Writer(path, entries) as writer:
        for name, to in named.items():
            made, place = rows(parameters[to.parameter], to), _place(name, within)
            writer.write(place.name, made if to.layout is None else to.layout.restore(made), place.start)
        for name, each in beside.items():
            for start, stop in blocks(math.prod(each.shape), BLOCK_VALUES):
                writer.write(name, each.values(start, stop), start)


def save_as(
    folder: Path,
    checkpoint: Checkpoint,
    planned: Plan,
    formats: Mapping[str, Integers],
    progress: Callable[[int, int], None],
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write the tensors of a checkpoint to a folder, those that fill the parameters of `formats` as their parts, with
    an index if one file would be larger than `shard_bytes`. No more than a block of a tensor is in memory, or one
    tensor where that is quantised already or lies otherwise than its parameter.

    Returns the bytes of the files, and the bits that a value of the parameters in `formats` takes.
    """
    read = 0

    def done(nbytes: int) -> None:
        nonlocal read
        read = min(read + nbytes, checkpoint.nbytes)  # one tensor may be read for two
        progress(read, checkpoint.nbytes)

    order = [name for name, _ in checkpoint.read(planned.assignments.__contains__, lambda nbytes: None)]
    entries = {name: _entries(name, checkpoint, planned, formats) for name in order}
    shards = _shards(entries, shard_bytes)
    reading = checkpoint.read(planned.assignments.__contains__, done)
    located: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        held: Entries = {name: entry for each in names for name, entry in entries[each].items()}
        located |= dict.fromkeys(held, file)
        with Writer(folder / file, held) as writer:
            for name, stored in itertools.islice(reading, len(names)):
                to = planned.assignments[name]
                place = _place(name, {} if to.parameter in formats else checkpoint.within)
                for ending, start, part in _pieces(stored, to, formats.get(to.parameter)):
                    writer.write(f"{place.name}{ending}", part, place.start + start)
    progress(checkpoint.nbytes, checkpoint.nbytes)
    total = sum(_nbytes(each) for each in entries.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": located}
        with complete(folder / "model.safetensors.index.json") as listed:
            listed.write(json.dumps(index, indent=2).encode())
    matrices = {name: to for name, to in planned.assignments.items() if to.parameter in formats}
    count = sum(math.prod(to.shape) for to in matrices.values())
    bits = 8 * sum(_nbytes(entries[name]) for name in matrices) / max(count, 1)
    return {"bytes": sum((folder / file).stat().st_size for file in set(located.values())), "bits_per_value": bits}


def _entries(name: str, checkpoint: Checkpoint, planned: Plan, formats: Mapping[str, Integers]) -> Entries:
    """What a tensor becomes."""
    to = planned.assignments[name]
    if to.parameter in formats:
        parts = formats[to.parameter].parts(to.shape).items()
        return {f"{name}{ending}": (NAMES[dtype], shape) for ending, (shape, dtype) in parts}
    info = checkpoint.info[name]
    return _whole(name, (info.dtype, info.shape), checkpoint.within)


def _whole(name: str, entry: tuple[str, tuple[int, ...]], within: Mapping[str, Within]) -> Entries:
    """A tensor, or that in which it lies with others, which the first of them stands for."""
    place = _place(name, within, entry[1])
    return {place.name: (entry[0], place.shape)} if place.start == 0 else {}


def _place(name: str, within: Mapping[str, Within], shape: tuple[int, ...] = ()) -> Within:
    """Where a tensor is written: in one with others, or by itself, in this shape."""
    return within.get(name, Within(name, shape, 0))


def _pieces(stored: Stored, to: Destination, made: Integers | None) -> Iterator[tuple[str, int, Tensor]]:
    """What a tensor becomes, piece by piece: the ending of its name, the number of its first value, the values; of one
    that is quantised already in fp32, so that any dtype is rounded to once."""
    if made is not None:
        for one, where in apart(stored, to):
            for start, parts in packed(made, Quantised(made, one, where), replace(where, layout=None)):
                for ending, part in parts.items():
                    yield ending, (where.start - to.start + start) * part[0].numel(), part
    else:
        for start, stop in blocks(math.prod(stored.shape), BLOCK_VALUES):
            values = stored.values(start, stop)
            check_finite(to.parameter, values)
            yield "", start, values


def _nbytes(entries: Entries) -> int:
    return sum(math.prod(shape) * BITS[dtype] // 8 for dtype, shape in entries.values())


def _shards(entries: Mapping[str, Entries], limit: int) -> list[list[str]]:
    """The tensors of each file: in order, as many as there is room for."""
    found, room = [list[str]()], limit
    for name, each in entries.items():
        if found[-1] and _nbytes(each) > max(room, 0):  # what lies in one before takes none
            found.append([])
            room = limit
        found[-1].append(name)
        room -= _nbytes(each)
    return found
