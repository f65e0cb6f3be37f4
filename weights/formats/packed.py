"""What the formats of this folder share: a matrix as the tensors that hold it, checks of these, and the order of
inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from minillm.weights.forms import Packing
from minillm.weights.grouped import Fields
from minillm.weights.source import Kept

Section = Mapping[str, Any]  # what config.json says of the quantisation, and as METADATA what headers of files say
METADATA = "__metadata__"
PLAIN = "weight"  # what the name of a plain matrix ends in
FLOATS = ("F32", "F16", "BF16")  # the types of plain factors
FACTORS = ("_scale_inv", "_scales", "_scale")  # what the names of factors add to the tensor's own, whatever that is


class Info(Protocol):
    """What is known of a stored tensor: its shape, and its type in the words of safetensors."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


Infos = Mapping[str, Info]


@dataclass(frozen=True)
class Stays:
    """The form that a matrix can stay in, and what makes of the parts what goes into it; where the inputs of a group do
    not follow each other, the order in which they do, int64 `[I]`. `by_rows` says that it takes any rows of the parts,
    all of which have those of the matrix, or one value."""

    form: Packing
    fields: Callable[[Mapping[str, Tensor]], Fields]
    order: Tensor | None = None
    by_rows: bool = False


@dataclass(frozen=True)
class Packed:
    """A matrix, or a stack of them, as a format stores it: `parts` are the tensors that it takes, by what the format
    calls them, `idle` the names of others that go with it and change nothing here; `dequantise` makes fp32 of `shape`,
    or of one matrix, of the parts' values; `stays` is how it can lie in memory, None where it has to be dequantised.
    Where rows lie as the model has them, whatever layout the rules speak of, `of_width` gives the matrix of so many
    columns, which the tensors alone may not tell; None where they cannot have so many."""

    title: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    dequantise: Callable[[Mapping[str, Tensor]], Tensor]
    idle: tuple[str, ...] = ()
    stays: Stays | None = None
    of_width: Callable[[int], Packed | None] | None = None


class Format(Protocol):
    """A file of this folder. `SPELLINGS` has the endings that tensors of one matrix have all together, `OPTIONAL`
    those that only some have: what names alone tell."""

    TITLE: str

    @property
    def SPELLINGS(self) -> tuple[tuple[str, ...], ...]: ...

    @property
    def OPTIONAL(self) -> tuple[str, ...]: ...

    def matrices(self, infos: Infos, section: Section, /) -> dict[str, Packed]:
        """The matrices that the tensors hold in this format, by their plain names. Raises ValueError, naming the
        tensor, for one that lacks a part or whose parts do not fit."""
        ...


class Stored(Protocol):
    """A tensor in a file (`source.InFile`, `torchfile.InStorage`)."""

    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def fresh(self) -> Any: ...

    def values(self, start: int = 0, stop: int | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Seen:
    """A tensor whose file is there: the `Info` of a format that looks into small tensors to learn how others lie."""

    shape: tuple[int, ...]
    dtype: str
    stored: Stored


def look(info: Info) -> Tensor | None:
    """The values of a tensor; None where only its name and shape are known."""
    return info.stored.fresh().values().view(info.shape) if isinstance(info, Seen) else None


@dataclass(frozen=True)
class Part:
    """One of the tensors that lie behind each other in a stored one, along its first axis."""

    stored: Stored
    number: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[1:]

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes // self.stored.shape[0]

    def fresh(self) -> Part:
        return Part(self.stored.fresh(), self.number)

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Values start … stop - 1."""
        size = math.prod(self.shape)
        first = self.number * size
        return self.stored.values(first + start, first + (size if stop is None else stop))


class Made(Kept):
    """A quantised matrix with the methods of `source.InFile`: computed in fp32 when it is asked for, and then kept."""

    word, dtype = "F32", torch.float32

    def __init__(self, packed: Packed, parts: Mapping[str, Stored]):
        self.packed, self.parts, self.shape, self.title = packed, parts, packed.shape, packed.title
        self.nbytes = sum(part.nbytes for part in parts.values())
        self.unpacked: Fields | None = None
        super().__init__()

    @property
    def form(self) -> Packing | None:
        """What the rows of the matrix can stay in."""
        return self.packed.stays.form if self.packed.stays else None

    @property
    def order(self) -> Tensor | None:
        """The order of inputs in that form; None where it is that of the matrix."""
        return self.packed.stays.order if self.packed.stays else None

    @property
    def by_rows(self) -> bool:
        """Whether it is read some rows at a time."""
        return self.packed.stays is not None and self.packed.stays.by_rows

    @property
    def stacked(self) -> bool:
        """Whether it is a stack of matrices, and so is each of its parts."""
        return len(self.shape) == 3 and all(part.shape[:1] == self.shape[:1] for part in self.parts.values())

    def one(self, number: int) -> Made:
        """One matrix of a stack."""
        parts = {name: Part(part, number) for name, part in self.parts.items()}
        return Made(replace(self.packed, shape=self.shape[1:]), parts)

    def fields(self, start: int, stop: int) -> Fields:
        """Rows start … stop - 1 of a matrix as they go into the form."""
        assert self.packed.stays is not None
        if self.packed.stays.by_rows:
            return self.packed.stays.fields({name: _rows(part, start, stop) for name, part in self.parts.items()})
        with self.lock:
            if self.unpacked is None:
                self.unpacked = self.packed.stays.fields(self._parts())
        return self.unpacked.rows(slice(start, stop))

    def _parts(self) -> dict[str, Tensor]:
        return {name: part.values().view(part.shape) for name, part in self.parts.items()}

    def fresh(self) -> Made:
        """The same matrix, nothing of which has been read."""
        return Made(self.packed, {name: part.fresh() for name, part in self.parts.items()})

    def fill(self, into: Tensor, start: int = 0) -> None:
        into.copy_(self.values(start, start + into.numel()).view(into.shape))

    def _read(self) -> Tensor:
        made = self.packed.dequantise(self._parts())
        assert (made.dtype, tuple(made.shape)) == (torch.float32, self.shape), self.packed
        return made.reshape(-1)


def _rows(part: Stored, start: int, stop: int) -> Tensor:
    """Rows start … stop - 1 of a tensor, or its one value."""
    if part.shape in ((), (1,)):
        return part.values().view(part.shape)
    size, stop = math.prod(part.shape[1:]), min(stop, part.shape[0])
    return part.values(start * size, stop * size).view(stop - start, *part.shape[1:])


def modules(infos: Iterable[str], ending: str) -> list[str]:
    """The names, up to and with the last point, of what has a tensor with this ending; up to the ending, where that is
    of a tensor that is no module's weight ("_scale_inv")."""
    end = ending if ending in FACTORS else "." + ending
    return [name.removesuffix(ending) for name in infos if name.endswith(end)]


def matrix_name(module: str, needed: tuple[str, ...]) -> str:
    """What the matrix is called that tensors with these endings hold."""
    return f"{module}{needed[0] if needed[-1] in FACTORS else PLAIN}"


def spelled(names: Collection[str], needed: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """The modules that have tensors with all of the endings needed: those and the optional ones by their endings."""
    found = dict[str, dict[str, str]]()
    for module in modules(names, needed[-1]):
        parts = {each: f"{module}{each}" for each in (*needed, *optional) if f"{module}{each}" in names}
        if all(each in parts for each in needed):
            found[module] = parts
    return found


def part(infos: Infos, module: str, ending: str, title: str) -> Info:
    """A tensor that a module must have."""
    if (found := infos.get(f"{module}{ending}")) is None:
        raise ValueError(f"{module}{ending} is missing, without which {module}{PLAIN} is no {title}; download it again")
    return found


def expect(name: str, found: Info, shape: tuple[int, ...], types: Iterable[str], title: str) -> None:
    """Raise ValueError where a tensor is not of the shape and one of the types that its format gives it."""
    if found.shape != shape:
        raise ValueError(f"{name} is {list(found.shape)}, {title} makes it {list(shape)}; is another format meant?")
    if found.dtype not in types:
        raise ValueError(f"{name} is {found.dtype}, {title} makes it {' or '.join(types)}")


def matrix(name: str, found: Info, title: str) -> tuple[int, int]:
    """Rows and columns of what is stored. Raises ValueError for what is no matrix."""
    if len(found.shape) != 2 or 0 in found.shape:
        raise ValueError(f"{name} is {list(found.shape)}, {title} is of matrices; is another format meant?")
    return found.shape[0], found.shape[1]


def check_said(section: Section, name: str, bits: int, count: int, inputs: int) -> None:
    """Raise ValueError where config.json says another number of bits than a matrix has, or a group size of which there
    are not `count` groups of `inputs`."""
    size, wrong = section.get("group_size"), None
    if section.get("bits") not in (None, bits):
        wrong = f"is of {bits} bits, config.json says {section['bits']!r}"
    elif type(size) is int and (1 if size <= 0 else -(-inputs // size)) != count:
        wrong = f"has {count} groups of {inputs} inputs, config.json says group_size {size}"
    if wrong:
        raise ValueError(f"{name} {wrong}; download both again from one place")


def by_group(values: Tensor, group_I: Tensor) -> Tensor:
    """Values of groups `[..., groups]` for each input: `[..., I]`."""
    return values.float().index_select(-1, group_I)


def ordered(g_idx: Info | None, size: int, inputs: int) -> tuple[bool, Tensor | None]:
    """Whether the inputs of each group can lie side by side in groups of `size`, and in which order they do then; None
    where they do already."""
    if g_idx is None:
        return True, None
    if (group_I := look(g_idx)) is None or bool((group_I == -1).all()):
        return group_I is not None, None
    by_size = torch.arange(inputs) // size
    order = group_I.long().argsort(stable=True)
    if not torch.equal(group_I.long()[order], by_size):
        return False, None
    return True, None if torch.equal(group_I.long(), by_size) else order


def groups(inputs: int, count: int, what: str) -> Tensor:
    """The group of each of the inputs, int64 `[I]`, where groups of equal size follow each other."""
    size = -(-inputs // count)
    if -(-inputs // size) != count:
        raise ValueError(f"{what}: {count} groups of {inputs} inputs; groups of one size cannot be so many")
    return torch.arange(inputs) // size
