"""GPTQ (arXiv:2210.17323), as AutoGPTQ and GPTQModel store it: 2, 3, 4 or 8 bits for a value.

    W[o, i] = scales[g, o] (q[i, o] - z[g, o])        g = g_idx[i]

`qweight` int32 `[I bits / 32, O]` has the q of an output as one stream of bits down its column, `qzeros` int32
`[groups, O bits / 32]` has the z of a group as one along its row, `scales` are fp16 `[groups, O]`, and `g_idx` int32
`[I]` is the group of each input: those that were quantised together lie anywhere ("desc_act").

Version 1 of the format, which most files have, stores z - 1: of 3 bits each by itself, else subtracted from the packed
words with all borrows. Files say "checkpoint_format": "gptq_v2" for the other, not always rightly: where quantising was
symmetric, z is half of the numbers that there are, and what is stored tells the version. AutoRound writes both and says
"auto_gptq" for version 1; its asymmetric files that do not are refused, as are the layouts of "marlin", "bitblas" and
"gptq_p", which pack otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from minillm.weights.formats.bits import unpacked
from minillm.weights.formats.packed import (
    PLAIN,
    Infos,
    Packed,
    Section,
    Stays,
    by_group,
    check_said,
    expect,
    groups,
    modules,
    ordered,
    part,
)
from minillm.weights.grouped import Fields, Grouped
from minillm.weights.source import DTYPES

TITLE = "GPTQ"
SPELLINGS, OPTIONAL = (("qweight", "qzeros", "scales"),), ("g_idx",)
BITS = (2, 3, 4, 8)
VERSIONS = ("gptq", "gptq_v2")
OVERRIDES = ("dynamic", "extra_config", "layer_config")  # where modules are quantised otherwise than the others


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with `qweight` whose rows are packed; those of AWQ, whose columns are, have other shapes."""
    found = {}
    for module in modules(infos, "qweight"):
        qweight, qzeros, scales = (part(infos, module, each, TITLE) for each in ("qweight", "qzeros", "scales"))
        if len(qweight.shape) != 2 or qweight.shape[1:] != scales.shape[1:]:
            continue
        _check_layout(section)
        rows, outputs = qweight.shape
        bits = 32 * qzeros.shape[-1] // max(outputs, 1)
        if bits not in BITS or rows * 32 % bits:
            raise ValueError(f"{module}qzeros is {list(qzeros.shape)}: {TITLE} of 2, 3, 4 or 8 bits has other zeros")
        inputs, count = rows * 32 // bits, scales.shape[0]
        expect(f"{module}qweight", qweight, (inputs * bits // 32, outputs), ("I32",), TITLE)
        expect(f"{module}qzeros", qzeros, (count, outputs * bits // 32), ("I32",), TITLE)
        expect(f"{module}scales", scales, (count, outputs), ("F16", "BF16", "F32"), TITLE)
        if not any(section.get(each) for each in OVERRIDES):
            check_said(section, f"{module}{PLAIN}", bits, count, inputs)
        names = {each: f"{module}{each}" for each in ("qweight", "qzeros", "scales")}
        if f"{module}g_idx" in infos:
            expect(f"{module}g_idx", infos[f"{module}g_idx"], (inputs,), ("I32", "I64"), TITLE)
            names["g_idx"] = f"{module}g_idx"
        elif section.get("desc_act") and count > 1:
            raise ValueError(f"{module}g_idx is missing, and desc_act is on: which inputs go together is not known")
        make = partial(dequantise, bits=bits, section=section, name=f"{module}{PLAIN}")
        size = -(-inputs // count)
        regular, order = ordered(infos.get(names.get("g_idx", "")), size, inputs)
        form = Grouped(max(bits, 4), size if count > 1 else 0, DTYPES[scales.dtype], zero=None)
        read = partial(fields, bits=bits, section=section, order=order)
        stays = Stays(form, read, order) if regular and -(-inputs // size) == count else None
        found[f"{module}{PLAIN}"] = Packed(TITLE, (outputs, inputs), names, make, stays=stays)
    return found


def _check_layout(section: Section) -> None:
    """Raise ValueError where config.json names a layout whose tensors have these names and other values."""
    said = str(section.get("checkpoint_format") or section.get("format") or VERSIONS[0])
    if section.get("is_marlin_format") or section.get("backend") == "marlin":
        said = "marlin"
    if said not in VERSIONS and not _is_of_auto_round(section):
        raise ValueError(f"{TITLE} in the layout {said!r} is not read; use a checkpoint in gptq or gptq_v2")


def _is_of_auto_round(section: Section) -> bool:
    return "auto-round" in str(section.get("quant_method"))


def dequantise(parts: Mapping[str, Tensor], bits: int, section: Section, name: str) -> Tensor:
    """fp32 `[O, I]`."""
    qweight, scales, outputs = parts["qweight"], parts["scales"], parts["qweight"].shape[1]
    inputs = len(qweight) * 32 // bits
    group_I = parts["g_idx"].long() if "g_idx" in parts else groups(inputs, len(scales), name)
    if not 0 <= int(group_I.min()) <= int(group_I.max()) < len(scales):
        named = f"{int(group_I.min())} to {int(group_I.max())}"
        raise ValueError(f"{name}: g_idx names groups {named}, there are {len(scales)}; download it again")
    q_OI = unpacked(qweight.t().contiguous(), bits, inputs)
    z_OG = zeros(parts["qzeros"], bits, outputs, section).t()
    q_OI -= z_OG.index_select(1, group_I)
    return by_group(scales.t(), group_I).mul_(q_OI)


def fields(parts: Mapping[str, Tensor], bits: int, section: Section, order: Tensor | None) -> Fields:
    """The same as numbers, zeros and scales, with the inputs in order."""
    qweight, outputs = parts["qweight"], parts["qweight"].shape[1]
    q_OI = unpacked(qweight.t().contiguous(), bits, len(qweight) * 32 // bits, torch.uint8)
    z_OG = zeros(parts["qzeros"], bits, outputs, section).t().to(torch.uint8)
    return Fields(q_OI if order is None else q_OI[:, order], parts["scales"].t().contiguous(), zero=z_OG.contiguous())


def zeros(qzeros: Tensor, bits: int, outputs: int, section: Section) -> Tensor:
    """int32 `[groups, O]`. To version 1 one is added to all numbers of a word at once, so that what was borrowed is
    given back; those of 3 bits lie across words and are taken one by one."""
    stored = unpacked(qzeros, bits, outputs)
    if not is_first_version(stored, bits, section):
        return stored
    if bits == 3:
        return (stored + 1) & 7
    return unpacked(qzeros + sum(1 << at for at in range(0, 32, bits)), bits, outputs)  # modulo 2^32


def is_first_version(stored: Tensor, bits: int, section: Section) -> bool:
    """Whether zeros are stored less one. All of one value that symmetric quantising gives are what they are."""
    half, values = 2 ** (bits - 1), set(stored.unique().tolist())
    if section.get("sym") is not False and values in ({half}, {half - 1}):
        return values == {half - 1}
    said = str(section.get("checkpoint_format") or section.get("format") or VERSIONS[0])
    if _is_of_auto_round(section):
        said = f"{section.get('packing_format')} {section.get('backend')}"
        if "auto_gptq" not in said:
            raise ValueError(f"asymmetric {TITLE} of AutoRound, packed as {said[:60]}: zeros of two versions are so")
    return said != "gptq_v2"
