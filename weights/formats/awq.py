"""AWQ (arXiv:2306.00978) in AutoAWQ's "gemm" layout: 4 bits for a value, with zeros.

    W[o, i] = scales[g, o] (q[i, o] - z[g, o])        g = i // group_size

`qweight` int32 `[I, O / 8]` and `qzeros` int32 `[groups, O / 8]` have eight outputs in a word, which lie in the order
0, 2, 4, 6, 1, 3, 5, 7 from its low end; `scales` are fp16 `[groups, O]`. Other layouts ("gemv", "gemv_fast", "marlin",
"exllama", "llm-awq") pack other axes or orders and are refused, by name or by their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from minillm.weights.formats.packed import (
    PLAIN,
    Infos,
    Packed,
    Section,
    Stays,
    check_said,
    expect,
    groups,
    modules,
    part,
)
from minillm.weights.grouped import Fields, Grouped
from minillm.weights.source import DTYPES

TITLE = "AWQ"
SPELLINGS, OPTIONAL = (("qweight", "qzeros", "scales"),), tuple[str, ...]()
BITS = 4
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the eight outputs lie


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Modules with `qweight` whose columns are packed; of all that GPTQ does not take, as no third format has one."""
    found = {}
    for module in modules(infos, "qweight"):
        qweight, qzeros, scales = (part(infos, module, each, TITLE) for each in ("qweight", "qzeros", "scales"))
        if len(qweight.shape) == 2 and qweight.shape[1:] == scales.shape[1:]:
            continue
        if layout := _other_layout(section):
            raise ValueError(f"{TITLE} in the layout {layout!r} is not read; use a checkpoint in the gemm layout")
        if len(qweight.shape) != 2 or len(scales.shape) != 2 or qweight.shape[1] * 8 != scales.shape[1]:
            found_shapes = f"{list(qweight.shape)} with scales {list(scales.shape)}"
            raise ValueError(f"{module}qweight is {found_shapes}: neither GPTQ nor {TITLE}; use a checkpoint in one")
        inputs, outputs, count = qweight.shape[0], scales.shape[1], scales.shape[0]
        expect(f"{module}qweight", qweight, (inputs, outputs // 8), ("I32",), TITLE)
        expect(f"{module}qzeros", qzeros, (count, outputs // 8), ("I32",), TITLE)
        expect(f"{module}scales", scales, (count, outputs), ("F16", "BF16", "F32"), TITLE)
        if not section.get("extra_config"):
            check_said(section, f"{module}{PLAIN}", BITS, count, inputs)
        names = {each: f"{module}{each}" for each in ("qweight", "qzeros", "scales")}
        make = partial(dequantise, name=f"{module}{PLAIN}")
        size = -(-inputs // count)
        form = Grouped(BITS, size if count > 1 else 0, DTYPES[scales.dtype], zero=None)
        stays = Stays(form, fields) if -(-inputs // size) == count else None
        found[f"{module}{PLAIN}"] = Packed(TITLE, (outputs, inputs), names, make, stays=stays)
    return found


def _other_layout(section: Section) -> str | None:
    """The layout that config.json names, if that is not the one read here."""
    said = [str(section[each]).lower() for each in ("version", "checkpoint_format", "format") if section.get(each)]
    if section.get("backend") == "llm-awq":
        said.append("llm-awq")
    return next((each for each in said if each != "gemm"), None)


def dequantise(parts: Mapping[str, Tensor], name: str) -> Tensor:
    """fp32 `[O, I]`."""
    group_I = groups(len(parts["qweight"]), len(parts["scales"]), name)
    q_OI, z_OG = (_numbers(parts[each]) for each in ("qweight", "qzeros"))
    return (q_OI.float() - z_OG[:, group_I]) * parts["scales"].float().t()[:, group_I]


def fields(parts: Mapping[str, Tensor]) -> Fields:
    """The same as numbers, zeros and scales."""
    return Fields(_numbers(parts["qweight"]), parts["scales"].t().contiguous(), zero=_numbers(parts["qzeros"]))


def _numbers(words: Tensor) -> Tensor:
    """int32 `[N, O / 8]` -> the numbers in the order of the outputs, uint8 `[O, N]`."""
    made = torch.empty(words.shape[1], len(ORDER), len(words), dtype=torch.uint8)
    turned = words.t().clone(memory_format=torch.contiguous_format)  # of one row too, which t() calls contiguous
    bytes_ON4 = turned.view(torch.uint8).view(words.shape[1], len(words), 4)
    for output, place in enumerate(ORDER):
        made[:, output] = bytes_ON4[..., place // 2] >> 4 * (place % 2) & 15
    return made.flatten(0, 1)
