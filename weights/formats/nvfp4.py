"""NVFP4: four-bit floats in groups of 16 that share an FP8 factor, and a factor for the whole matrix.

    W[o, i] = e2m1[o, i] weight_scale[o, i // 16] s

compressed-tensors stores the values as `weight_packed` uint8 `[O, I / 2]`, the first of two in the low half, and
s = 1 / `weight_global_scale`; ModelOpt as `weight`, and s = `weight_scale_2`. Both are one fp32 value; `weight_scale`
is e4m3 `[O, I / 16]`. The values are those of MXFP4 (`weights/formats/e2m1.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from minillm.weights.formats import e2m1
from minillm.weights.formats.bits import halves
from minillm.weights.formats.packed import PLAIN, Infos, Packed, Section, Stays, expect, matrix, spelled
from minillm.weights.formats.stated import scaled
from minillm.weights.grouped import Fields, Grouped

TITLE = "NVFP4"
GROUP = 16
SPELLINGS = (("weight_packed", "weight_scale", "weight_global_scale"), ("weight", "weight_scale", "weight_scale_2"))
OPTIONAL = tuple[str, ...]()


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with bytes, e4m3 factors and a factor for all."""
    found = {}
    for spelling in SPELLINGS:
        for module, names in spelled(infos, spelling, OPTIONAL).items():
            values, scale, whole = (infos[names[each]] for each in spelling)
            if values.dtype != "U8" or scale.dtype != "F8_E4M3":
                continue
            rows, half = matrix(names[spelling[0]], values, TITLE)
            expect(names["weight_scale"], scale, (rows, 2 * half // GROUP), ("F8_E4M3",), TITLE)
            expect(names[spelling[2]], whole, whole.shape if whole.shape == (1,) else (), ("F32",), TITLE)
            if 2 * half % GROUP:
                raise ValueError(f"{names[spelling[0]]} has rows of {2 * half} values: no whole groups of {GROUP}")
            name = f"{module}{PLAIN}"
            form = Grouped(4, GROUP, torch.float16, torch.float32, table=e2m1.VALUES)
            make, read = (
                partial(dequantise, spelling=spelling, name=name),
                partial(fields, spelling=spelling, name=name),
            )
            found[name] = Packed(TITLE, (rows, 2 * half), names, make, stays=Stays(form, read, by_rows=True))
    return found


def dequantise(parts: Mapping[str, Tensor], spelling: tuple[str, ...], name: str) -> Tensor:
    """fp32 `[O, I]`."""
    whole, divides = _whole(parts, spelling, name)
    factors = parts["weight_scale"].float() / whole if divides else parts["weight_scale"].float() * whole
    return scaled(e2m1.values(parts[spelling[0]]), factors, (1, GROUP))


def fields(parts: Mapping[str, Tensor], spelling: tuple[str, ...], name: str) -> Fields:
    """The same as numbers, scales, and the factor of each row: 1 / s rounds once more than a division by s."""
    numbers, (whole, divides) = halves(parts[spelling[0]]), _whole(parts, spelling, name)
    factor = 1 / whole if divides else whole
    return Fields(numbers, parts["weight_scale"].half(), factor.expand(len(numbers), 1))


def _whole(parts: Mapping[str, Tensor], spelling: tuple[str, ...], name: str) -> tuple[Tensor, bool]:
    """What the whole matrix has, fp32 `[]`, and whether that divides it."""
    whole = parts[spelling[2]]
    if not 0 < float(whole) < float("inf"):
        raise ValueError(f"{name}: {spelling[2]} is {float(whole)}, which is no factor; download it again")
    return whole.reshape(()), spelling[2] == "weight_global_scale"
