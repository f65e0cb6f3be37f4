"""Quantised matrices made by hand: streams of bits as a straightforward encoder writes them, and tensors in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minillm.weights.formats import gathered
from minillm.weights.formats.packed import Packed, Seen
from minillm.weights.source import NAMES

MATRIX = "model.m.weight"


class InMemory:
    def __init__(self, tensor: Tensor):
        self.tensor, self.shape, self.nbytes = tensor, tuple(tensor.shape), tensor.nbytes

    def fresh(self) -> InMemory:
        return self

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.tensor.flatten()[start:stop]


def found(tensors: Mapping[str, Tensor], section: Mapping[str, Any] | None = None) -> dict[str, Packed]:
    infos = {name: Seen(tuple(each.shape), NAMES[each.dtype], InMemory(each)) for name, each in tensors.items()}
    return gathered(infos, section or {})


def matrix(tensors: Mapping[str, Tensor], section: Mapping[str, Any] | None = None, name: str = MATRIX) -> Tensor:
    """The values of the matrix that some tensors hold."""
    packed = found(tensors, section)[name]
    made = packed.dequantise({part: tensors[each] for part, each in packed.parts.items()})
    assert (made.dtype, tuple(made.shape)) == (torch.float32, packed.shape)
    return made


def dequantised(parts: Mapping[str, Tensor], section: Mapping[str, Any]) -> Tensor:
    """The matrix of a module with these tensors, by the endings of their names."""
    return matrix({f"{MATRIX.removesuffix('weight')}{ending}": each for ending, each in parts.items()}, section)


def in_memory(parts: Mapping[str, Tensor], section: Mapping[str, Any]) -> Tensor:
    """The values of the same in the form that it stays in."""
    return as_it_lies({f"{MATRIX.removesuffix('weight')}{ending}": each for ending, each in parts.items()}, section)


def as_it_lies(tensors: Mapping[str, Tensor], section: Mapping[str, Any] | None = None) -> Tensor:
    """The values of the only matrix that some tensors hold, packed into the form that it stays in."""
    (packed,) = found(tensors, section).values()
    assert packed.stays is not None
    form = packed.stays.form
    made = form.pack(packed.stays.fields({part: tensors[each] for part, each in packed.parts.items()}))
    assert {name: (tuple(each.shape), each.dtype) for name, each in made.items()} == form.parts(packed.shape)
    return form.dequantise(made, packed.shape[1], torch.float32)


def group(**weights: Any) -> dict[str, Any]:
    """What compressed-tensors says of one group of matrices."""
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def stream(numbers: Sequence[int], bits: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Words of 32 bits that hold the numbers one after the other, from the lowest bit on."""
    whole = sum(number << (bits * index) for index, number in enumerate(numbers))
    words = [(whole >> 32 * index) & (2**32 - 1) for index in range(-(-len(numbers) * bits // 32))]
    return torch.tensor([word - 2**32 if word >= 2**31 else word for word in words], dtype=torch.int32).view(dtype)


def rows(numbers: Tensor, bits: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Each row of `[N, M]` as a stream."""
    return torch.stack([stream(row, bits, dtype) for row in numbers.tolist()])


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(low: int, high: int, shape: Sequence[int], seed: int) -> Tensor:
    """Whole numbers from `low` to `high` - 1."""
    return torch.randint(low, high, tuple(shape), generator=drawn(seed), dtype=torch.int32)


def exchange(folder: Path, removed: Sequence[str], added: Mapping[str, Tensor]) -> None:
    """Put other tensors into the only file of a folder."""
    tensors = {name: each for name, each in load_file(folder / "model.safetensors").items() if name not in removed}
    save_file(tensors | {name: each.contiguous() for name, each in added.items()}, folder / "model.safetensors")
