"""FP8 with plain factors: of a tensor, of rows, of groups or of blocks.

    W[o, i] = weight[o, i] weight_scale[p]        p: the piece that (o, i) lies in

`weight` e4m3 `[O, I]`; `weight_scale`, in a float type, `[]` or `[1]` (AutoFP8, ModelOpt), `[O, 1]` or `[O]` (FBGEMM),
any of these or `[ceil(O / 128), ceil(I / 128)]` (compressed-tensors, "float-quantized"). It multiplies. A fused matrix
has to have one factor, or one for each row: as many as it has parts say nothing of where these begin, and are refused.
Factors for activations are not used, nor is the bound that FBGEMM puts on them. The blocks of DeepSeek call their
factors otherwise (`formats/fp8_blocks.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from minillm.weights.formats.packed import FLOATS, PLAIN, Infos, Packed, Section, Stays, matrix, spelled
from minillm.weights.formats.stated import BLOCK, CHANNEL, TENSOR, piece, pieces, scaled, spread
from minillm.weights.fp8 import Fp8
from minillm.weights.grouped import Fields

TITLE = "FP8"
SPELLINGS = (("weight", "weight_scale"),)
OPTIONAL = tuple[str, ...]()


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with e4m3 and factors in a float type."""
    found = {}
    for module, names in spelled(infos, SPELLINGS[0], OPTIONAL).items():
        weight, scale = (infos[names[each]] for each in ("weight", "weight_scale"))
        if weight.dtype != "F8_E4M3" or scale.dtype not in FLOATS:
            continue
        shape = matrix(names["weight"], weight, TITLE)
        size = piece(names["weight_scale"], scale.shape, shape, pieces(section, (TENSOR, CHANNEL, BLOCK)))
        stays = Stays(Fp8(size[1] if size[1] < shape[1] else 0), partial(fields, size=size))
        found[f"{module}{PLAIN}"] = Packed(TITLE, shape, names, partial(dequantise, size=size), stays=stays)
    return found


def dequantise(parts: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
    """fp32 `[O, I]`."""
    return scaled(parts["weight"].float(), parts["weight_scale"], size)


def fields(parts: Mapping[str, Tensor], size: tuple[int, int]) -> Fields:
    """The same as values and the factors of each row."""
    weight = parts["weight"]
    shape = len(weight), -(-weight.shape[1] // size[1])
    return Fields(weight, spread(parts["weight_scale"], shape, (size[0], 1)).expand(shape).contiguous())
