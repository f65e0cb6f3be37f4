"""Block-scaled FP8, as DeepSeek-V3 publishes it (arXiv:2412.19437, section 3.3).

    W[o, i] = X[o, i] X_scale_inv[o // 128, i // 128]

X is e4m3 `[O, I]`, mostly called "….weight", and `X_scale_inv`, in a float type or as the bytes of E8M0 (powers of two,
"scale_fmt": "ue8m0"), `[ceil(O / 128), ceil(I / 128)]`: the last row and column of blocks are ragged. The factors
multiply, whatever their name says. Matrices of experts may be stacked, X `[E, O, I]` with as many factors each.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from minillm.weights.formats.mx import SCALES
from minillm.weights.formats.packed import Infos, Packed, Section, Stays, expect, spelled
from minillm.weights.formats.stated import scaled, spread
from minillm.weights.fp8 import BLOCK, NAME, Fp8
from minillm.weights.grouped import Fields

TITLE = "FP8"
SCALE = "_scale_inv"
SPELLINGS, OPTIONAL = (("", SCALE),), tuple[str, ...]()
FLOATS = ("F64", "F32", "F16", "BF16", *SCALES)
SIZE = BLOCK, BLOCK


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Tensors with `_scale_inv`. Raises ValueError for a weight of their type without, where others have factors."""
    found = {}
    for name, names in spelled(infos, SPELLINGS[0], OPTIONAL).items():
        weight, scale = infos[name], infos[names[SCALE]]
        if len(weight.shape) not in (2, 3) or 0 in weight.shape:
            raise ValueError(f"{name} is {list(weight.shape)}, {TITLE} is of matrices; is another format meant?")
        expect(name, weight, weight.shape, (NAME,), TITLE)
        blocks = "in blocks of 128 x 128"
        expect(names[SCALE], scale, factors(weight.shape), FLOATS, f"{TITLE} of {list(weight.shape)} {blocks}")
        make, read = partial(dequantise, name=names[SCALE]), partial(fields, name=names[SCALE])
        found[name] = Packed(TITLE, weight.shape, names, make, stays=Stays(Fp8(BLOCK), read))
    bare = (name for name, each in infos.items() if each.dtype == NAME and name.endswith(".weight"))
    alone = next((name for name in bare if name not in found and f"{name}_scale" not in infos), None)
    if found and alone:
        raise ValueError(f"{alone}{SCALE} is missing, without which {alone} is no {TITLE}; download it again")
    return found


def factors(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the factors of a matrix `[..., O, I]`."""
    return (*shape[:-2], *(-(-size // BLOCK) for size in shape[-2:]))


def dequantise(parts: Mapping[str, Tensor], name: str) -> Tensor:
    """fp32 `[..., O, I]`."""
    weight, scale = parts[""], _sound(parts[SCALE], name)
    if weight.dim() == 3:
        return torch.stack([scaled(one.float(), each, SIZE) for one, each in zip(weight, scale, strict=True)])
    return scaled(weight.float(), scale, SIZE)


def fields(parts: Mapping[str, Tensor], name: str) -> Fields:
    """The same of a matrix as values and the factors of each row."""
    shape = len(parts[""]), -(-parts[""].shape[1] // BLOCK)
    return Fields(parts[""], spread(_sound(parts[SCALE], name), shape, (BLOCK, 1)).expand(shape).contiguous())


def _sound(scale: Tensor, name: str) -> Tensor:
    """The factors. Raises ValueError where these are no positive numbers."""
    if scale.element_size() == 1:
        scale = scale.view(torch.float8_e8m0fnu).float()
    if not bool(((scale > 0) & (scale < torch.inf)).all()):
        raise ValueError(f"{name} has values that no factor has; download it again")
    return scale
