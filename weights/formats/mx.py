"""MXFP4 and MXFP8 (Open Compute Project, Microscaling Formats v1.0), as compressed-tensors stores them.

    W[o, i] = value[o, i] 2^(weight_scale[o, i // 32] - 127)

`weight_scale` uint8 `[O, I / 32]`, or the same bytes as E8M0. MXFP4 has its values in `weight_packed` uint8
`[O, I / 2]`, the first of two in the low half (`weights/mxfp4.py`, where a checkpoint calls them `_blocks`); MXFP8 in
`weight` e4m3 `[O, I]`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from minillm.weights import mxfp4
from minillm.weights.formats.packed import PLAIN, Infos, Packed, Section, Stays, expect, halves, matrix, spelled
from minillm.weights.formats.stated import scaled
from minillm.weights.fp8 import Fp8
from minillm.weights.grouped import Fields, Grouped

BLOCK = mxfp4.BLOCK
SCALES = ("U8", "F8_E8M0")
TITLE = "MX"
TITLES = {"U8": "MXFP4", "F8_E4M3": "MXFP8"}
SPELLINGS = (("weight_packed", "weight_scale"), ("weight", "weight_scale"))
OPTIONAL = tuple[str, ...]()


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with four-bit or e4m3 values whose factors are powers of two."""
    found = {}
    for spelling, word in zip(SPELLINGS, TITLES, strict=True):
        for module, names in spelled(infos, spelling, OPTIONAL).items():
            values, scale, title = infos[names[spelling[0]]], infos[names["weight_scale"]], TITLES[word]
            if values.dtype != word or scale.dtype not in SCALES:
                continue
            rows, columns = matrix(names[spelling[0]], values, title)
            columns = 2 * columns if word == "U8" else columns
            if columns % BLOCK:
                raise ValueError(f"{names[spelling[0]]} has rows of {columns} values: no whole blocks of {BLOCK}")
            expect(names["weight_scale"], scale, (rows, columns // BLOCK), SCALES, title)
            form = Grouped(4, BLOCK, torch.bfloat16, table=mxfp4.VALUES) if word == "U8" else Fp8(BLOCK)
            found[f"{module}{PLAIN}"] = Packed(title, (rows, columns), names, dequantise, stays=Stays(form, fields))
    return found


def dequantise(parts: Mapping[str, Tensor]) -> Tensor:
    """fp32 `[O, I]`."""
    values = mxfp4.values(parts["weight_packed"]) if "weight_packed" in parts else parts["weight"].float()
    factors = parts["weight_scale"].view(torch.float8_e8m0fnu).float()
    return scaled(values, factors, (1, BLOCK))


def fields(parts: Mapping[str, Tensor]) -> Fields:
    """The same as numbers, or e4m3 values, and factors."""
    factors = parts["weight_scale"].view(torch.float8_e8m0fnu).float()
    if "weight_packed" not in parts:
        return Fields(parts["weight"], factors)
    return Fields(halves(parts["weight_packed"]), factors.bfloat16())
