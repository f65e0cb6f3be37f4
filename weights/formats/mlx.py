"""MLX folders, as mlx-lm writes them: all matrices in groups along their rows, embedding and head too.

    affine           W[o, i] = scales[o, g] q[o, i] + biases[o, g]       g = i // group_size; 2, 3, 4, 5, 6, 8 bits
    mxfp4            W[o, i] = e2m1(q[o, i]) 2^(scales[o, g] - 127)      groups of 32
    mxfp8            W[o, i] = e4m3(q[o, i]) 2^(scales[o, g] - 127)      groups of 32
    nvfp4            W[o, i] = e2m1(q[o, i]) e4m3(scales[o, g])          groups of 16

`X.weight` uint32 `[O, I bits / 32]` has the q of a row as one stream of bits, `X.scales` and `X.biases` are floats
`[O, I / group_size]`, and scales uint8 in the modes of floats, which have no biases.

The shapes leave open how many bits there are, so the section `quantization` of config.json must say it: "bits",
"group_size" and "mode" (affine, if it is not there), for all modules or, under the name of one, for that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minillm.weights.formats.bits import unpacked
from minillm.weights.formats.e2m1 import VALUES
from minillm.weights.formats.packed import PLAIN, Infos, Packed, Section, Stays, expect, modules, part
from minillm.weights.fp8 import Fp8
from minillm.weights.grouped import Fields, Grouped
from minillm.weights.source import DTYPES

TITLE = "MLX"
SPELLINGS, OPTIONAL = ((PLAIN, "scales"),), ("biases",)
# mode -> bits, and the group size where there is only one
MODES: dict[str, tuple[tuple[int, ...], int | None]] = {
    "affine": ((2, 3, 4, 5, 6, 8), None),
    "mxfp4": ((4,), 32),
    "mxfp8": ((8,), 32),
    "nvfp4": ((4,), 16),
}
FLOATS = ("F32", "F16", "BF16")


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with `scales` whose weights are words without a sign."""
    found = {}
    for module in modules(infos, "scales"):
        name = f"{module}{PLAIN}"
        if name not in infos or infos[name].dtype != "U32":
            continue
        bits, size, mode = _said(section, module)
        stored, scales = infos[name], part(infos, module, "scales", TITLE)
        *rows, words = stored.shape
        columns = words * 32 // bits
        title = f"{TITLE} {mode} of {bits} bits"
        if columns % size or words * 32 % bits:
            raise ValueError(f"{name} is {list(stored.shape)}: {columns} inputs are no whole groups of {size}, {title}")
        names = {PLAIN: name, "scales": f"{module}scales"}
        types = FLOATS if mode == "affine" else ("U8",)
        expect(f"{module}scales", scales, (*rows, columns // size), types, f"{title} in groups of {size}")
        if mode == "affine":
            expect(f"{module}biases", part(infos, module, "biases", title), scales.shape, FLOATS, title)
            names["biases"] = f"{module}biases"
        make = partial(dequantise, bits=bits, size=size, mode=mode)
        stays = _stays(bits, size, mode, scales.dtype)
        found[name] = Packed(title, (*rows, columns), names, make, stays=stays)
    return found


def _said(section: Section, module: str) -> tuple[int, int, str]:
    """Bits, group size and mode of a module. Raises ValueError where config.json does not say them."""
    name = module.removesuffix(".")
    own: Any = section.get(name, {})
    if own is False:
        raise ValueError(f"{module}scales is there, but config.json says that {name} is not quantised")
    said = {**section, **(own if isinstance(own, dict) else {})}
    mode = said.get("mode", "affine")
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"config.json: mode of quantization is {mode!r} for {name}, {TITLE} has {', '.join(MODES)}")
    bits, size = said.get("bits"), said.get("group_size")
    known, only = MODES[mode]
    if type(bits) is not int or bits not in known:
        words = ", ".join(map(str, known))
        raise ValueError(f"config.json: bits of quantization is {bits!r} for {name}, {TITLE} {mode} has {words}")
    if type(size) is not int or size <= 0 or (only is not None and size != only):
        words = "a positive number" if only is None else str(only)
        raise ValueError(f"config.json: group_size of quantization is {size!r} for {name}, expected {words}")
    return bits, size, mode


def dequantise(parts: Mapping[str, Tensor], bits: int, size: int, mode: str) -> Tensor:
    """fp32 `[..., O, I]`."""
    words, scales = parts[PLAIN], parts["scales"]
    columns = words.shape[-1] * 32 // bits
    numbers = unpacked(words.flatten(0, -2), bits, columns)
    if mode == "affine":
        values = numbers.float()
    elif bits == 4:
        values = torch.tensor(VALUES).index_select(0, numbers.flatten())
    else:
        values = numbers.to(torch.uint8).view(torch.float8_e4m3fn).float()
    if mode == "affine":
        factors = scales.float()
    else:
        factors = scales.view(torch.float8_e4m3fn if mode == "nvfp4" else torch.float8_e8m0fnu).float()
    made = values.view(*words.shape[:-1], -1, size).mul_(factors[..., None])
    if mode == "affine":
        made += parts["biases"].float()[..., None]
    return made.flatten(-2)


def _stays(bits: int, size: int, mode: str, scales: str) -> Stays:
    """How a matrix lies in memory."""
    if mode == "mxfp8":
        return Stays(Fp8(size), partial(fields, bits=bits, mode=mode), by_rows=True)
    if mode == "affine":
        form = Grouped(max(bits, 4), size, DTYPES[scales], minimum=True)
    else:
        form = Grouped(4, size, torch.float16 if mode == "nvfp4" else torch.bfloat16, table=VALUES)
    return Stays(form, partial(fields, bits=bits, mode=mode), by_rows=True)


def fields(parts: Mapping[str, Tensor], bits: int, mode: str) -> Fields:
    """The same as numbers, scales and minima."""
    words, scales = parts[PLAIN], parts["scales"]
    numbers = unpacked(words, bits, words.shape[-1] * 32 // bits, torch.uint8)
    if mode == "affine":
        return Fields(numbers, scales, least=-parts["biases"].to(scales.dtype))
    if mode == "nvfp4":
        return Fields(numbers, scales.view(torch.float8_e4m3fn).half())
    factors = scales.view(torch.float8_e8m0fnu).float()
    return (
        Fields(numbers, factors.bfloat16()) if mode == "mxfp4" else Fields(numbers.view(torch.float8_e4m3fn), factors)
    )
