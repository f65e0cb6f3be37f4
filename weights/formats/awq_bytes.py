"""AWQ as ModelOpt stores it (W4A16_AWQ): integers of 4 bits, two outputs in a byte.

    W[o, i] = weight_scale[o, g] q[o, i] pre_quant_scale[i]        g = i // group_size

`weight` uint8 `[O / 2, I]` has the q of output 2r in the low half of row r and of output 2r + 1 in the high half, in
two's complement; `weight_scale` is fp32 `[O, groups]`. `pre_quant_scale` `[I]` multiplies the input of the matrix where
no norm before it could take it in. W4A8_AWQ, with another factor, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from minillm.weights.formats.packed import FLOATS, PLAIN, Infos, Packed, Section, Stays, expect, matrix, spelled
from minillm.weights.formats.stated import CHANNEL, even, piece, scaled
from minillm.weights.grouped import Fields, Grouped
from minillm.weights.source import DTYPES

TITLE = "W4A16_AWQ"
SPELLINGS = (("weight", "weight_scale"),)
OPTIONAL = ("pre_quant_scale",)


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with bytes and factors in a float type."""
    found = {}
    for module, names in spelled(infos, SPELLINGS[0], OPTIONAL).items():
        weight, scale = (infos[names[each]] for each in ("weight", "weight_scale"))
        if weight.dtype != "U8" or scale.dtype not in FLOATS:
            continue
        if f"{module}weight_scale_2" in infos:
            raise ValueError(f"{module}weight_scale_2: W4A8_AWQ is not read; use a checkpoint in W4A16_AWQ")
        half, columns = matrix(names["weight"], weight, TITLE)
        shape = 2 * half, columns
        stated = section.get("group_size")
        known = {(1, stated)} if type(stated) is int and stated > 0 else {CHANNEL, even(columns, scale.shape)}
        size = piece(names["weight_scale"], scale.shape, shape, known)
        if "pre_quant_scale" in names:
            expect(names["pre_quant_scale"], infos[names["pre_quant_scale"]], (columns,), FLOATS, TITLE)
        form = Grouped(4, size[1] if size[1] < columns else 0, DTYPES[scale.dtype], zero=8)
        stays = None if "pre_quant_scale" in names or size[0] != 1 else Stays(form, fields)
        found[f"{module}{PLAIN}"] = Packed(TITLE, shape, names, partial(dequantise, size=size), stays=stays)
    return found


def dequantise(parts: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
    """fp32 `[O, I]`."""
    made = scaled((_numbers(parts).int()).sub_(8).float(), parts["weight_scale"], size)
    return made.mul_(parts["pre_quant_scale"].float()) if "pre_quant_scale" in parts else made


def fields(parts: Mapping[str, Tensor]) -> Fields:
    """The same as numbers, 8 above what they stand for, and scales."""
    return Fields(_numbers(parts), parts["weight_scale"])


def _numbers(parts: Mapping[str, Tensor]) -> Tensor:
    """uint8 `[O, I]`, 8 above what they stand for."""
    return torch.stack((parts["weight"] & 15, parts["weight"] >> 4), 1).flatten(0, 1) ^ 8
