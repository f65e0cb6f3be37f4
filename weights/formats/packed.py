"""What the formats of this folder share: a matrix as the tensors that hold it, checks of these, and streams of bits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Section = Mapping[str, Any]  # what config.json says of the quantisation
PLAIN = "weight"  # what the name of a plain matrix ends in


class Info(Protocol):
    """What is known of a stored tensor: its shape, and its type in the words of safetensors."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


Infos = Mapping[str, Info]


@dataclass(frozen=True)
class Packed:
    """A matrix as a format stores it: `parts` are the tensors that it takes, by what the format calls them, `idle` the
    names of others that go with it and change nothing here; `dequantise` makes fp32 of `shape` of the parts' values."""

    title: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    dequantise: Callable[[Mapping[str, Tensor]], Tensor]
    idle: tuple[str, ...] = ()


class Format(Protocol):
    """A file of this folder."""

    TITLE: str

    def matrices(self, infos: Infos, section: Section, /) -> dict[str, Packed]:
        """The matrices that the tensors hold in this format, by their plain names. Raises ValueError, naming the
        tensor, for one that lacks a part or whose parts do not fit."""
        ...


class Stored(Protocol):
    """A tensor in a file (`source.InFile`, `torchfile.InStorage`)."""

    nbytes: int

    @property
    def shape(self) -> tuple[int, ...]: ...

    def fresh(self) -> Any: ...

    def values(self, start: int = 0, stop: int | None = None) -> Tensor: ...


class Made:
    """A quantised matrix with the methods of `source.InFile`: computed in fp32 when it is asked for, and then kept."""

    word, dtype = "F32", torch.float32

    def __init__(self, packed: Packed, parts: Mapping[str, Stored]):
        self.packed, self.parts, self.shape, self.title = packed, parts, packed.shape, packed.title
        self.nbytes = sum(part.nbytes for part in parts.values())
        self.kept: Tensor | None = None
        self.lock = threading.Lock()

    def fresh(self) -> Made:
        """The same matrix, nothing of which has been read."""
        return Made(self.packed, {name: part.fresh() for name, part in self.parts.items()})

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Values start … stop - 1 of all in a row."""
        with self.lock:
            if self.kept is None:
                self.kept = self._computed()
        return self.kept[start:stop]

    def fill(self, into: Tensor, start: int = 0) -> None:
        into.copy_(self.values(start, start + into.numel()).view(into.shape))

    def _computed(self) -> Tensor:
        read = {name: part.values().view(part.shape) for name, part in self.parts.items()}
        made = self.packed.dequantise(read)
        assert (made.dtype, tuple(made.shape)) == (torch.float32, self.shape), self.packed
        return made.reshape(-1)


def modules(infos: Iterable[str], ending: str) -> list[str]:
    """The names, up to and with the last point, of what has a tensor with this ending."""
    return [name.removesuffix(ending) for name in infos if name.endswith("." + ending)]


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


def unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """The `count` numbers of `bits` bits each that rows of words `[N, W]` hold, int32 `[N, count]`: one stream of bits
    along a row, the lowest of a word first, across words where `bits` does not divide their size."""
    size = 8 * words.element_size()
    words = words.view(torch.int32 if size == 32 else torch.uint8).to(torch.int64) & (2**size - 1)
    first = torch.arange(count) * bits
    at, shift = first // size, first % size
    low = words[:, at] >> shift
    across = (shift + bits > size).nonzero().flatten()
    low[:, across] |= words[:, (at[across] + 1).clamp(max=words.shape[1] - 1)] << (size - shift[across])
    return (low & (2**bits - 1)).to(torch.int32)


def by_group(values: Tensor, group_I: Tensor) -> Tensor:
    """Values of groups `[..., groups]` for each input: `[..., I]`."""
    return values.float().index_select(-1, group_I)


def groups(inputs: int, count: int, what: str) -> Tensor:
    """The group of each of the inputs, int64 `[I]`, where groups of equal size follow each other."""
    size = -(-inputs // count)
    if -(-inputs // size) != count:
        raise ValueError(f"{what}: {count} groups of {inputs} inputs; groups of one size cannot be so many")
    return torch.arange(inputs) // size
