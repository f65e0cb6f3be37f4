"""Integers packed in words, as compressed-tensors stores them ("pack-quantized"): 2 to 8 bits for a value.

    W[o, i] = weight_scale[o, g] (q[o, i] - z[o, g])        g = i // group_size, or weight_g_idx[i]

`weight_packed` int32 `[O, ceil(I bits / 32)]` has the q of an output as one stream of bits along its row; what fills
the last word is cut off by `weight_shape`, int64 `[O, I]`. `weight_scale` is `[O, groups]`, `[O, 1]` or `[1]`. Where
quantising was not symmetric `weight_zero_point` has the z, packed along the outputs: int32
`[ceil(O bits / 32), groups]`; before packing was thought of, int8 `[O, groups]`. Numbers in words lie 2^(bits - 1)
above what they stand for. `weight_g_idx` int32 `[I]` is the group of each input; -1 everywhere says nothing.

Early files of 3, 5, 6 and 7 bits leave the bits of a word free that no whole number fits in. The number of words tells,
but for rows of a few values, which are read as one stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from minillm.weights.formats.bits import unpacked
from minillm.weights.formats.packed import (
    FLOATS,
    PLAIN,
    Info,
    Infos,
    Packed,
    Section,
    Stays,
    expect,
    look,
    matrix,
    ordered,
    spelled,
)
from minillm.weights.formats.stated import CHANNEL, TENSOR, check_zeros, even, piece, pieces, spread, weights
from minillm.weights.grouped import Fields, Grouped
from minillm.weights.source import DTYPES

TITLE = "packed integers"
SPELLINGS = (("weight_packed", "weight_scale", "weight_shape"),)
OPTIONAL = ("weight_zero_point", "weight_g_idx")


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with words, factors and a shape."""
    found = {}
    for module, names in spelled(infos, SPELLINGS[0], OPTIONAL).items():
        packed, scale = (infos[names[each]] for each in ("weight_packed", "weight_scale"))
        check_zeros(section, names, module)
        rows, columns = _shape(names["weight_shape"], infos[names["weight_shape"]], packed)
        bits, dense = _bits(names["weight_packed"], packed.shape[1], columns, section)
        expect(names["weight_packed"], packed, (rows, _words(columns, bits, dense)), ("I32",), TITLE)
        expect(names["weight_scale"], scale, scale.shape, FLOATS, TITLE)
        known = pieces(section, {TENSOR, CHANNEL, even(columns, scale.shape)})
        size = piece(names["weight_scale"], scale.shape, (rows, columns), known)
        if (zero := infos.get(names.get("weight_zero_point", ""))) is not None:
            groups = -(-columns // size[1])
            high = _words(rows, bits, dense) if zero.dtype == "I32" else -(-rows // size[0])
            expect(names["weight_zero_point"], zero, (high, groups), ("I32", "I8"), TITLE)
        if (g_idx := infos.get(names.get("weight_g_idx", ""))) is not None:
            expect(names["weight_g_idx"], g_idx, (columns,), ("I32", "I64"), TITLE)
        name = f"{module}{PLAIN}"
        make = partial(dequantise, shape=(rows, columns), bits=bits, dense=dense, size=size, name=name)
        regular, order = ordered(g_idx, size[1], columns)
        form = Grouped(_plane(bits), size[1] if size[1] < columns else 0, DTYPES[scale.dtype], zero=2 ** (bits - 1))
        form = form if zero is None else replace(form, zero=None)
        read = partial(fields, shape=(rows, columns), bits=bits, dense=dense, size=size, order=order)
        stays = Stays(form, read, order) if regular else None
        found[name] = Packed(TITLE, (rows, columns), names, make, stays=stays)
    return found


def dequantise(
    parts: Mapping[str, Tensor], shape: tuple[int, int], bits: int, dense: bool, size: tuple[int, int], name: str
) -> Tensor:
    """fp32 `[O, I]`."""
    rows, columns = shape
    q_OI = _numbers(parts["weight_packed"], bits, columns, dense)
    groups = -(-columns // size[1])
    group_I = _groups(parts.get("weight_g_idx"), groups, columns, size[1], name)
    scale_OG = spread(parts["weight_scale"], (rows, groups), (size[0], 1))
    z_OG = _zeros(parts.get("weight_zero_point"), bits, rows, dense)
    z_OG = torch.full((1, groups), 2 ** (bits - 1)) if z_OG is None else z_OG
    return (q_OI - z_OG.index_select(1, group_I)).float().mul_(scale_OG.index_select(1, group_I))


def fields(
    parts: Mapping[str, Tensor], shape: tuple[int, int], bits: int, dense: bool, size: tuple[int, int],
    order: Tensor | None,
) -> Fields:  # fmt: skip
    """The same as numbers, zeros and scales, with the inputs in order."""
    (rows, columns), scale = shape, parts["weight_scale"]
    q_OI = _numbers(parts["weight_packed"], bits, columns, dense, torch.uint8)
    z_OG = _zeros(parts.get("weight_zero_point"), bits, rows, dense)
    scale_OG = spread(scale, (rows, -(-columns // size[1])), (size[0], 1)).to(scale.dtype).expand(rows, -1)
    z_OG = None if z_OG is None else z_OG.to(torch.uint8).expand(rows, -1).contiguous()
    return Fields(q_OI if order is None else q_OI[:, order], scale_OG.contiguous(), zero=z_OG)


def _plane(bits: int) -> int:
    """The bits of the numbers in memory, where there are no planes of 2, 3 and 7."""
    return max(bits, 4) if bits < 7 else 8


def _zeros(zero: Tensor | None, bits: int, rows: int, dense: bool) -> Tensor | None:
    if zero is None or zero.dtype == torch.int8:
        return zero if zero is None else zero.int() + 2 ** (bits - 1)
    return _numbers(zero.t().contiguous(), bits, rows, dense).t()


def _groups(g_idx: Tensor | None, groups: int, columns: int, size: int, name: str) -> Tensor:
    """The group of each input, int64 `[I]`."""
    if g_idx is None or bool((g_idx == -1).all()):
        return torch.arange(columns) // size
    if not 0 <= int(g_idx.min()) <= int(g_idx.max()) < groups:
        raise ValueError(f"{name}: weight_g_idx names group {int(g_idx.max())}, there are {groups}; download it again")
    return g_idx.long()


def _shape(name: str, found: Info, packed: Info) -> tuple[int, int]:
    expect(name, found, (2,), ("I64", "I32"), TITLE)
    values = look(found)
    assert values is not None
    rows, columns = values.tolist()
    high, words = matrix(name.replace("weight_shape", "weight_packed"), packed, TITLE)
    if rows != high or not 0 < columns <= 16 * words:
        raise ValueError(f"{name} says {[rows, columns]}, weight_packed is {list(packed.shape)}; download it again")
    return rows, columns


def _bits(name: str, words: int, columns: int, section: Section) -> tuple[int, bool]:
    """Bits of a value, of those that are stated, and whether numbers lie across words."""
    stated = {each.get("num_bits") for each in weights(section) if each.get("type", "int") == "int"}
    choices = [bits for bits in range(2, 9) if bits in stated or not stated]
    fitting = {bits: _words(columns, bits, True) == words for bits in choices
               if words in (_words(columns, bits, True), _words(columns, bits, False))}  # fmt: skip
    if len(fitting) != 1:
        said = " or ".join(map(str, choices)) or f"{sorted(map(str, stated))}"
        raise ValueError(f"{name} has {words} words for {columns} values, which {said} bits do not explain")
    return fitting.popitem()


def _words(count: int, bits: int, dense: bool) -> int:
    return -(-count * bits // 32) if dense else -(-count // (32 // bits))


def _numbers(words: Tensor, bits: int, count: int, dense: bool, dtype: torch.dtype = torch.int32) -> Tensor:
    """The numbers in rows of words `[N, W]`, `[N, count]`."""
    if dense:
        return unpacked(words, bits, count, dtype)
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    return (words[:, :, None] >> shifts & 2**bits - 1).flatten(1)[:, :count].to(dtype)
