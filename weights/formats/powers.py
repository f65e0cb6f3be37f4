"""FP8 and FP4 with scales that are powers of two, both in one checkpoint, as DeepSeek-V4 is published.

    W[o, i] = X[o, i] X_scale[o // 128, i // 128]           "X.weight" e4m3 [O, I]
    W[o, i] = X[o, i] X_scale[o, i // 32]                   "X.weight" int8 [O, I / 2], two e2m1 values in each byte

"X.scale" are E8M0 bytes. Only the names differ from block-scaled FP8 (`fp8_blocks.py`: `weight_scale_inv`) and MXFP4
(`mx.py`: `weight_scale`); matrices are computed, and stay in memory, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from minillm.weights.formats import fp8_blocks, mx
from minillm.weights.formats.packed import Infos, Packed, Section, Stays, expect, matrix, matrix_name, spelled
from minillm.weights.fp8 import BLOCK, Fp8
from minillm.weights.fp8 import NAME as E4M3
from minillm.weights.grouped import Fields

TITLE = "FP8 or FP4 with powers of two"
NEEDED = ("weight", "scale")
SPELLINGS, OPTIONAL = (NEEDED,), tuple[str, ...]()
PAIRS = ("I8", "U8")  # the types of bytes with two values


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with e4m3 values or pairs of e2m1 whose factors are E8M0."""
    found = {}
    for module, names in spelled(infos, NEEDED, OPTIONAL).items():
        weight, scale = (infos[names[each]] for each in NEEDED)
        if scale.dtype not in mx.SCALES or weight.dtype not in (E4M3, *PAIRS):
            continue
        title = fp8_blocks.TITLE if weight.dtype == E4M3 else mx.FP4
        rows, columns = matrix(names["weight"], weight, title)
        wanted, named = fp8_blocks.factors((rows, columns)), names["scale"]
        make, stays = partial(_fp8, name=named), Stays(Fp8(BLOCK), partial(_fp8_fields, name=named))
        if weight.dtype != E4M3:
            columns = 2 * columns
            if columns % mx.BLOCK:
                raise ValueError(f"{names['weight']} has rows of {columns} values: no whole blocks of {mx.BLOCK}")
            wanted, make = (rows, columns // mx.BLOCK), partial(_fp4, name=named)
            stays = Stays(mx.FORMS[mx.FP4], partial(_fp4_fields, name=named), by_rows=True)
        expect(named, scale, wanted, mx.SCALES, f"{title} of {[rows, columns]}")
        found[matrix_name(module, NEEDED)] = Packed(title, (rows, columns), names, make, stays=stays)
    return found


def _fp8(parts: Mapping[str, Tensor], name: str) -> Tensor:
    return fp8_blocks.dequantise(_blocks(parts), name)


def _fp8_fields(parts: Mapping[str, Tensor], name: str) -> Fields:
    return fp8_blocks.fields(_blocks(parts), name)


def _fp4(parts: Mapping[str, Tensor], name: str) -> Tensor:
    return mx.dequantise(_bytes(parts), name)


def _fp4_fields(parts: Mapping[str, Tensor], name: str) -> Fields:
    return mx.fields(_bytes(parts), name)


def _blocks(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"": parts["weight"], fp8_blocks.SCALE: parts["scale"]}


def _bytes(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"weight": parts["weight"].view(torch.uint8), "scale": parts["scale"]}
