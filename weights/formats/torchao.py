"""torchao, as transformers 5 writes it into safetensors: one tensor for each part, and what they are in the header.

    Int8Tensor, IntxUnpackedToInt8Tensor     W[o, i] = (qdata[o, i] - zero_point[b]) scale[b]
    Float8Tensor                             W[o, i] = qdata[o, i] scale[b]

b is the block that o and i lie in: `block_size` `[O', I']` says how large one is, `[1, I]` for a factor of each row and
`[1, g]` for groups. `X._weight_qdata` is int8 or e4m3 `[O, I]`, `X._weight_scale` a float `[O / O', I / I']`, and
`X._weight_zero_point` int8 of the same shape. The metadata in the header of the file have under "X.weight" a JSON
object with the class ("_type") and its values ("_data"); among them is the type that the matrix had, to which W is
rounded. A Float8Tensor does not stay in memory as it is: the form of FP8 has no such rounding.

Classes that pack 4 bits are layouts for one kind of GPU each and are refused by name; older folders, pickled into .bin
files, are none of tensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minillm.guard.jsonfile import parsed
from minillm.weights.formats.packed import METADATA, PLAIN, Infos, Packed, Section, Stays, expect, modules, part
from minillm.weights.grouped import Fields, Grouped
from minillm.weights.source import DTYPES

TITLE = "torchao"
CLASSES = {"Int8Tensor": "I8", "IntxUnpackedToInt8Tensor": "I8", "Float8Tensor": "F8_E4M3"}
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PREFIX = f"_{PLAIN}_"
SPELLINGS, OPTIONAL = ((f"{PREFIX}qdata", f"{PREFIX}scale"),), (f"{PREFIX}zero_point",)
FLOATS = ("F32", "F16", "BF16")


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with `_weight_qdata`."""
    found = {}
    for module in modules(infos, f"{PREFIX}qdata"):
        kind, block, dtype = _said(section, f"{module}{PLAIN}")
        title = f"{TITLE} {kind}"
        qdata, scale = (part(infos, module, f"{PREFIX}{each}", title) for each in ("qdata", "scale"))
        names = {each: f"{module}{PREFIX}{each}" for each in ("qdata", "scale")}
        shape = qdata.shape
        if len(shape) != len(block) or any(size % each for size, each in zip(shape, block, strict=True)):
            raise ValueError(f"{names['qdata']} is {list(shape)}, which are no whole blocks of {list(block)}")
        expect(names["qdata"], qdata, shape, (CLASSES[kind],), title)
        blocks = tuple(size // each for size, each in zip(shape, block, strict=True))
        expect(names["scale"], scale, blocks, FLOATS, f"{title} in blocks of {list(block)}")
        zero = f"{module}{PREFIX}zero_point"
        if zero in infos:
            expect(zero, infos[zero], blocks, (CLASSES[kind],), title)
            names["zero_point"] = zero
        elif kind != "Float8Tensor":
            raise ValueError(f"{zero} is missing, without which {module}{PLAIN} is no {title}; download it again")
        make, stays = partial(dequantise, block=block, dtype=dtype), None
        if kind != "Float8Tensor" and len(block) > 1 and set(block[:-1]) == {1}:
            size = block[-1] if block[-1] < shape[-1] else 0
            stays = Stays(Grouped(8, size, DTYPES[scale.dtype], zero=None, rounded=dtype), fields)
        found[f"{module}{PLAIN}"] = Packed(title, shape, names, make, stays=stays)
    return found


def _said(section: Section, name: str) -> tuple[str, tuple[int, ...], torch.dtype]:
    """The class, the block size and the type of a matrix, from the header of its file."""
    metadata = section.get(METADATA, {})
    if name not in metadata:
        raise ValueError(f"{name}: the file's header does not say which class of {TITLE} it is; download it again")
    said: Any = parsed(metadata[name], f"the header's metadata of {name}", "; download it again")
    kind, data = (said.get(key) for key in ("_type", "_data")) if isinstance(said, dict) else (None, None)
    if not isinstance(kind, str) or kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise ValueError(f"{name} is a {str(kind)[:60]} of {TITLE}, read are {known}; use one of these, or GPTQ or AWQ")
    data = data if isinstance(data, dict) else {}
    block = data.get("block_size")
    if not isinstance(block, list) or not block or any(type(each) is not int or each <= 0 for each in block):
        raise ValueError(f"{name}: block_size in the file's header is {str(block)[:40]}, expected positive numbers")
    dtype = data.get("dtype")
    dtype = dtype.get("_data") if isinstance(dtype, dict) else None
    if dtype not in TYPES:
        raise ValueError(f"{name}: dtype in the file's header is {str(dtype)[:40]}, expected {', '.join(TYPES)}")
    return kind, tuple(block), TYPES[dtype]


def dequantise(parts: Mapping[str, Tensor], block: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """fp32 `[O, I]`."""

    def spread(values: Tensor) -> Tensor:
        for axis in range(values.dim()):  # from the last on, as one matrix of a stack has an axis less
            values = values.repeat_interleave(block[-axis - 1], -axis - 1)
        return values

    made = parts["qdata"].float()
    if "zero_point" in parts:
        made -= spread(parts["zero_point"].float())
    return made.mul_(spread(parts["scale"].float())).to(dtype).float()


def fields(parts: Mapping[str, Tensor]) -> Fields:
    """The same as numbers and zeros, 128 above what they stand for, and scales."""
    numbers, zeros = (parts[each].view(torch.uint8) ^ 128 for each in ("qdata", "zero_point"))
    return Fields(numbers, parts["scale"], zero=zeros)
