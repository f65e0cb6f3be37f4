"""MXFP4 and MXFP8 (Open Compute Project, Microscaling Formats v1.0): small floats in blocks of 32 that share a power of
two.

    W[o, i] = value[o, i] 2^(s[o, i // 32] - 127)        255 stands for NaN

s are uint8 `[O, I / 32]`, or the same bytes as E8M0. compressed-tensors calls them `weight_scale`; MXFP4 has its values
in `weight_packed` uint8 `[O, I / 2]`, the first of two in the low half (`weights/formats/e2m1.py`), MXFP8 in `weight`
e4m3 `[O, I]`. gpt-oss has MXFP4 of all experts in a tensor, `X_blocks` uint8 `[E, O, I / 32, 16]` with `X_scales`
`[E, O, I / 32]`; the matrix keeps the name `X_blocks`, as plain experts called X lie the other way around.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from minillm.weights.formats import e2m1
from minillm.weights.formats.bits import halves
from minillm.weights.formats.packed import (
    Info,
    Infos,
    Packed,
    Section,
    Stays,
    expect,
    matrix,
    matrix_name,
    spelled,
)
from minillm.weights.forms import Packing
from minillm.weights.fp8 import Fp8
from minillm.weights.grouped import Fields, Grouped

BLOCK = 32
MAX_SCALE = 252  # 6 * 2^(252 - 127) < 2^128
SCALES = ("U8", "F8_E8M0")
TITLE = "MX"
FP4, FP8 = "MXFP4", "MXFP8"
SPELLINGS = (("weight_packed", "weight_scale"), ("weight", "weight_scale"), ("_blocks", "_scales"))
OPTIONAL = tuple[str, ...]()
TYPES = {"weight_packed": "U8", "weight": "F8_E4M3"}
FORMS: dict[str, Packing] = {FP4: Grouped(4, BLOCK, torch.bfloat16, table=e2m1.VALUES), FP8: Fp8(BLOCK)}


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with four-bit or e4m3 values whose factors are powers of two, and tensors in such blocks."""
    found = {}
    for first, second in SPELLINGS:
        for module, names in spelled(infos, (first, second), OPTIONAL).items():
            values, scale, title = infos[names[first]], infos[names[second]], FP8 if first == "weight" else FP4
            if first in TYPES and (values.dtype != TYPES[first] or scale.dtype not in SCALES):
                continue
            *rows, columns = _shape(names[first], values, title)
            expect(names[second], scale, (*rows, columns // BLOCK), SCALES, title)
            make, read = partial(dequantise, name=names[second]), partial(fields, name=names[second])
            name, stays = matrix_name(module, (first, second)), Stays(FORMS[title], read, by_rows=True)
            found[name] = Packed(title, (*rows, columns), names, make, stays=stays)
    for name, each in infos.items():
        if name.endswith("_blocks") and each.dtype == "U8" and len(each.shape) == 4 and name not in found:
            scales = f"{name.removesuffix('_blocks')}_scales"
            raise ValueError(f"{scales} is missing, without which {name} is no {FP4}; download it again")
    return found


def _shape(name: str, values: Info, title: str) -> tuple[int, ...]:
    """The shape of the matrices whose values these are."""
    if name.endswith("_blocks"):
        if len(values.shape) != 4 or 0 in values.shape:
            wanted = f"[experts, outputs, blocks, {BLOCK // 2}]"
            raise ValueError(f"{name} is {list(values.shape)}, {title} makes it {wanted}")
        expect(name, values, (*values.shape[:3], BLOCK // 2), ("U8",), title)
        return (*values.shape[:2], values.shape[2] * BLOCK)
    rows, columns = matrix(name, values, title)
    columns = columns if title == FP8 else 2 * columns
    if columns % BLOCK:
        raise ValueError(f"{name} has rows of {columns} values: no whole blocks of {BLOCK}")
    return rows, columns


def dequantise(parts: Mapping[str, Tensor], name: str) -> Tensor:
    """fp32 `[..., O, I]`."""
    stored, factors = _given(parts, name)
    values = stored.float() if stored.dtype == torch.float8_e4m3fn else e2m1.values(stored)
    return values.view(*factors.shape, BLOCK).mul_(factors[..., None]).flatten(-2)


def fields(parts: Mapping[str, Tensor], name: str) -> Fields:
    """The same of a matrix as numbers, or e4m3 values, and factors."""
    stored, factors = _given(parts, name)
    if stored.dtype == torch.float8_e4m3fn:
        return Fields(stored, factors)
    return Fields(halves(stored), factors.bfloat16())


def _given(parts: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """What is stored of rows, and fp32 factors. Raises ValueError where these are no numbers, or too large ones."""
    stored, scales = parts.values()
    if bool((scales.view(torch.uint8) > MAX_SCALE).any()):
        raise ValueError(f"{name} has values that no factor has; download it again")
    stored = stored.flatten(-2) if stored.dim() > scales.dim() else stored
    return stored, scales.view(torch.float8_e8m0fnu).float()
