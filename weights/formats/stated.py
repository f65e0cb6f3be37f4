"""What a checkpoint says of its quantisation that tensors cannot tell, in the words of compressed-tensors.

    config_groups.X.weights: {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}

A factor stands for a piece of a matrix, so many rows times so many columns; which pieces there are is the `strategy`:
"tensor" all of it, "channel" a row, "group" and "tensor_group" `group_size` values of a row, "block" the two numbers of
`block_structure`. Which matrix is in which group, its tensors tell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from minillm.weights.formats.packed import Section

Piece = tuple[int | None, int | None]  # rows and columns; None is all of them
TENSOR: Piece = (None, None)
CHANNEL: Piece = (1, None)
BLOCK: Piece = (128, 128)
REFUSED = ("marlin-24", "sparse-bitmask", "sparse-24-bitmask", "mxfp6-pack-quantized")


def refuse(section: Section) -> None:
    """Raise ValueError for layouts, and for changes of matrices, that no format here undoes."""
    groups, sparsity = section.get("config_groups"), section.get("sparsity_config")
    inside = list(groups.values()) if isinstance(groups, Mapping) else []
    for place in (section, *inside, sparsity):
        if isinstance(place, Mapping) and place.get("format") in REFUSED:
            raise ValueError(f"matrices in the format {place['format']!r} are not read; use a checkpoint in another")
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise ValueError(f"sparsity_config says {str(sparsity['format'])[:40]!r}, supported is dense")
    if section.get("transform_config"):
        raise ValueError("transform_config rotates activations, which is not supported; use a checkpoint without it")


def weights(section: Section) -> Iterator[Mapping[str, Any]]:
    """What each of the groups says of its matrices."""
    groups = section.get("config_groups")
    for each in groups.values() if isinstance(groups, Mapping) else ():
        if isinstance(each, Mapping) and isinstance(stated := each.get("weights"), Mapping):
            yield stated


def check_zeros(section: Section, names: Mapping[str, str], module: str) -> None:
    """Raise ValueError for a matrix without zeros where all groups of integers say that they are not symmetric."""
    said = [each.get("symmetric") for each in weights(section) if each.get("type", "int") == "int"]
    if said and "weight_zero_point" not in names and all(each is False for each in said):
        raise ValueError(
            f"{module}weight_zero_point is missing, and config.json says symmetric false; download it again"
        )


def pieces(section: Section, otherwise: Collection[Piece]) -> set[Piece]:
    """All pieces that groups speak of; the `otherwise` ones where none does."""
    found = set[Piece]()
    for each in weights(section):
        strategy = each.get("strategy")
        if strategy in ("tensor", "channel"):
            found.add(TENSOR if strategy == "tensor" else CHANNEL)
        elif strategy in ("group", "tensor_group"):
            size = each.get("group_size")
            found.add(CHANNEL if size == -1 else (1, _sizes([size], "group_size", 1)[0]))
        elif strategy == "block":
            rows, columns = _sizes(each.get("block_structure"), "block_structure", 2)
            found.add((rows, columns))
        elif strategy is not None:
            raise ValueError(f"config_groups: strategy {str(strategy)[:40]!r} is not known to this version")
    if section.get("weight_block_size") is not None:
        rows, columns = _sizes(section["weight_block_size"], "weight_block_size", 2)
        found.add((rows, columns))
    return found or set(otherwise)


def piece(name: str, factors: tuple[int, ...], shape: tuple[int, ...], known: Collection[Piece]) -> tuple[int, int]:
    """The rows and columns that a factor stands for, of factors `[]`, `[1]`, `[O]` or `[a, b]` for a matrix `[O, I]`.
    Raises ValueError where no known piece, or more than one, gives so many."""
    rows, columns = shape
    count = factors if len(factors) > 1 else ((*factors, 1)[0], 1)
    found = {
        (min(high or rows, rows), min(wide or columns, columns))
        for high, wide in known
        if count == (-(-rows // (high or rows)), -(-columns // (wide or columns)))
    }
    if len(found) != 1:
        said = " or ".join(f"{high or 'all'} x {wide or 'all'}" for high, wide in sorted(known, key=str))
        raise ValueError(f"{name} is {list(factors)}: {list(shape)} values in pieces of {said} have other factors")
    return found.pop()


def even(columns: int, factors: tuple[int, ...]) -> Piece:
    """What of a row each of its factors stands for, where no size is stated."""
    return 1, -(-columns // max((1, *factors[1:])))


def scaled(values: Tensor, factors: Tensor, size: tuple[int, int]) -> Tensor:
    """fp32 `[O, I]` times the factor of each piece, in place."""
    return values.mul_(spread(factors, (*values.shape,), size))


def spread(factors: Tensor, shape: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """The factor of each value: fp32 `[O, I]`, or `[O, 1]` and `[1, 1]` where that is the same."""
    made = factors.to(torch.float32).view(-(-shape[0] // size[0]), -(-shape[1] // size[1]))
    if len(made) > 1:
        made = made.repeat_interleave(size[0], 0)[: shape[0]]
    return made if made.shape[1] == 1 else made.repeat_interleave(size[1], 1)[:, : shape[1]]


def _sizes(value: Any, key: str, count: int) -> list[int]:
    sizes = value if isinstance(value, list) else []
    if len(sizes) != count or not all(type(each) is int and each > 0 for each in sizes):
        raise ValueError(f"config.json: {key} is {str(value)[:40]}, expected {count} positive numbers")
    return sizes
