"""Integers of 8 bits, as compressed-tensors stores them ("int-quantized", "naive-quantized"; W8A8).

    W[o, i] = weight_scale[p] (weight[o, i] - weight_zero_point[p])        p: the piece that (o, i) lies in

`weight` int8 `[O, I]`; `weight_scale`, in a float type, `[O, 1]`, `[1]`, or as many as there are groups or blocks;
`weight_zero_point` int8 of the same shape where quantising was not symmetric. Activations, which such a checkpoint
quantises too, stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from minillm.weights.formats.packed import FLOATS, PLAIN, Infos, Packed, Section, Stays, expect, matrix, spelled
from minillm.weights.formats.stated import CHANNEL, TENSOR, check_zeros, piece, pieces, scaled, spread
from minillm.weights.grouped import Fields, Grouped
from minillm.weights.source import DTYPES

TITLE = "scaled int8"
SPELLINGS = (("weight", "weight_scale"),)
OPTIONAL = ("weight_zero_point",)


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with int8 and factors. Those that this project writes have one factor for each row too, but as `[O]`."""
    found = {}
    for module, names in spelled(infos, SPELLINGS[0], OPTIONAL).items():
        weight, scale = (infos[names[each]] for each in ("weight", "weight_scale"))
        if weight.dtype != "I8" or (len(scale.shape) == 1 and scale.shape != (1,)):
            continue
        check_zeros(section, names, module)
        shape = matrix(names["weight"], weight, TITLE)
        expect(names["weight_scale"], scale, scale.shape, FLOATS, TITLE)
        size = piece(names["weight_scale"], scale.shape, shape, pieces(section, (TENSOR, CHANNEL)))
        if "weight_zero_point" in names:
            expect(names["weight_zero_point"], infos[names["weight_zero_point"]], scale.shape, ("I8",), TITLE)
        form = Grouped(8, size[1] if size[1] < shape[1] else 0, DTYPES[scale.dtype], zero=128)
        form = form if "weight_zero_point" not in names else replace(form, zero=None)
        stays = Stays(form, partial(fields, size=size))
        found[f"{module}{PLAIN}"] = Packed(TITLE, shape, names, partial(dequantise, size=size), stays=stays)
    return found


def dequantise(parts: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
    """fp32 `[O, I]`."""
    made = parts["weight"].float()
    if "weight_zero_point" in parts:
        made -= spread(parts["weight_zero_point"], (*made.shape,), size)
    return scaled(made, parts["weight_scale"], size)


def fields(parts: Mapping[str, Tensor], size: tuple[int, int]) -> Fields:
    """The same as numbers, zeros and scales, 128 above what they stand for."""
    weight, scale = parts["weight"], parts["weight_scale"]
    shape, each = (len(weight), -(-weight.shape[1] // size[1])), (size[0], 1)
    zero = parts.get("weight_zero_point")
    made = None if zero is None else (spread(zero, shape, each) + 128).to(torch.uint8).expand(shape).contiguous()
    scale_OG = spread(scale, shape, each).to(scale.dtype).expand(shape).contiguous()
    return Fields(weight.view(torch.uint8) ^ 128, scale_OG, zero=made)
