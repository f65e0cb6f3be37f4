"""bitsandbytes: NF4 and FP4 (QLoRA, arXiv:2305.14314), and LLM.int8 (arXiv:2208.07339).

    4 bits   W[n] = quant_map[q[n]] absmax[n // blocksize]       n counts the values of the matrix row by row
    int8     W[o, i] = q[o, i] SCB[o] / 127

4 bits: `X.weight` uint8 `[N / 2, 1]` has two values in a byte, the first of them in its high half; or the same bytes as
another type (`bnb_4bit_quant_storage`). `X.weight.absmax` is fp32 `[blocks]`, and a block may go on in the next row;
`X.weight.quant_map` is fp32 `[16]`; `X.weight.quant_state.bitsandbytes__nf4` (or fp4) has JSON in its bytes: the shape,
the block size, and the type that the matrix had, to which W is rounded. Quantised twice, `absmax` is uint8, and

    absmax[b] = nested_quant_map[absmax[b]] nested_absmax[b // nested_blocksize] + nested_offset

int8: `X.weight` int8 `[O, I]`, `X.SCB` fp32 `[O]`, and `X.weight_format` uint8 `[]`: 0 says that rows are rows, others
are layouts for GPUs and refused. That the tool takes some columns in fp16 while it runs changes nothing stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minillm.guard.jsonfile import parsed
from minillm.weights.formats.packed import PLAIN, Infos, Packed, Section, Stays, expect, look, modules, part
from minillm.weights.grouped import Fields, Grouped
from minillm.weights.source import DTYPES

TITLE = "bitsandbytes"
KINDS = ("nf4", "fp4")
STATE = "quant_state.bitsandbytes__"
SPELLINGS = (
    (PLAIN, "SCB"),
    *((PLAIN, f"{PLAIN}.absmax", f"{PLAIN}.quant_map", f"{PLAIN}.{STATE}{kind}") for kind in KINDS),
)
OPTIONAL = ("weight_format", f"{PLAIN}.nested_absmax", f"{PLAIN}.nested_quant_map")
STORAGE = ("U8", "BF16", "F16", "F32")
FLOATS = ("F32", "F16", "BF16")
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KEYS = {"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"}
MAX_BLOCK, MAX_STATE = 2**16, 2**16


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """Weights with a `quant_state`, and those with an `SCB`."""
    found = {}
    for kind in KINDS:
        for name in modules(infos, f"{STATE}{kind}"):
            found[name[:-1]] = _of_four_bits(infos, name[:-1], kind)
    for module in modules(infos, "SCB"):
        found[f"{module}{PLAIN}"] = _of_int8(infos, module)
    return found


def _of_four_bits(infos: Infos, name: str, kind: str) -> Packed:
    """The matrix `name`, "X.weight"; other tensors have its name and an ending."""
    title, module = f"{TITLE} {kind}", name.removesuffix(PLAIN)
    stored, absmax, table = (part(infos, module, f"{PLAIN}{each}", title) for each in ("", ".absmax", ".quant_map"))
    state = _state(infos, f"{name}.{STATE}{kind}", kind)
    shape, block = tuple(state["shape"]), state["blocksize"]
    count = math.prod(shape)
    width = 2 * DTYPES[stored.dtype].itemsize if stored.dtype in STORAGE else 2
    expect(name, stored, (-(-count // width), 1), STORAGE, title)
    blocks = -(-count // block)
    nested = absmax.dtype == "U8"
    expect(f"{name}.absmax", absmax, (blocks,), ("F32", "U8"), title)
    expect(f"{name}.quant_map", table, (16,), FLOATS, title)
    names = {"": name, "absmax": f"{name}.absmax", "quant_map": f"{name}.quant_map"}
    if nested:
        if "nested_blocksize" not in state or "nested_offset" not in state:
            raise ValueError(f"{name}.{STATE}{kind} lacks nested_blocksize or nested_offset, but absmax is quantised")
        sizes = {"nested_absmax": -(-blocks // state["nested_blocksize"]), "nested_quant_map": 256}
        for each, size in sizes.items():
            expect(f"{name}.{each}", part(infos, module, f"{PLAIN}.{each}", title), (size,), FLOATS, title)
            names[each] = f"{name}.{each}"
    elif "nested_offset" in state:
        raise ValueError(f"{name}.absmax is {absmax.dtype}, but its quant_state says that it is quantised, as U8")
    make = partial(dequantise, shape=shape, state=state)
    stays = _stays(look(table), shape, block, state)
    return Packed(title, shape, names | {"state": f"{name}.{STATE}{kind}"}, make, stays=stays)


def _stays(table: Tensor | None, shape: tuple[int, ...], block: int, state: Mapping[str, Any]) -> Stays | None:
    """How a matrix lies whose blocks are of one row each."""
    if table is None or shape[1] % block:
        return None
    values, rounded = tuple(table.float().tolist()), TYPES[state["dtype"]]
    form = Grouped(4, block, torch.float32, table=values, rounded=None if rounded == torch.float32 else rounded)
    return Stays(form, partial(fields, shape=shape, state=state))


def _state(infos: Infos, name: str, kind: str) -> dict[str, Any]:
    """What the JSON in a tensor says. Raises ValueError for what is none, or says what cannot be."""
    if math.prod(infos[name].shape) > MAX_STATE:
        raise ValueError(f"{name} is {list(infos[name].shape)}, expected a short JSON text; download it again")
    values = look(infos[name])
    if values is None or values.dtype != torch.uint8:
        raise ValueError(f"{name} is {infos[name].dtype}, {TITLE} makes it U8: the bytes of a JSON text")
    try:
        text = bytes(values.flatten().tolist()).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is no text; download it again") from None
    state = parsed(text, name, "; download it again")
    if not isinstance(state, dict):
        raise ValueError(f"{name}: expected a JSON object, found {type(state).__name__}; download it again")
    is_size = {each: _is_size(state.get(each)) for each in ("blocksize", "nested_blocksize")}
    shape = state.get("shape")
    offset = state.get("nested_offset", 0.0)
    wrong = {
        **dict.fromkeys(set(state) - KEYS, True),
        "quant_type": state.get("quant_type") != kind,
        "blocksize": not is_size["blocksize"],
        "dtype": state.get("dtype") not in TYPES,
        "shape": not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)),
        "nested_blocksize": "nested_blocksize" in state and not is_size["nested_blocksize"],
        "nested_dtype": state.get("nested_dtype", "float32") not in TYPES,
        "nested_offset": isinstance(offset, bool) or not isinstance(offset, (int, float)),
    }
    if key := next((key for key, is_wrong in wrong.items() if is_wrong), None):
        raise ValueError(f"{name}: {key} is {str(state.get(key))[:40]!r}, which {TITLE} {kind} does not have")
    return state


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= MAX_BLOCK


def dequantise(parts: Mapping[str, Tensor], shape: tuple[int, ...], state: Mapping[str, Any]) -> Tensor:
    """fp32 of `shape`."""
    count, block = math.prod(shape), state["blocksize"]
    values = parts["quant_map"].float().index_select(0, _numbers(parts, count).int())
    absmax = _absmax(parts, state)
    whole = count // block * block
    values[:whole].view(-1, block).mul_(absmax[: count // block, None])
    values[whole:] *= absmax[-1]
    return values.to(TYPES[state["dtype"]]).float().view(shape)


def fields(parts: Mapping[str, Tensor], shape: tuple[int, ...], state: Mapping[str, Any]) -> Fields:
    """The same as numbers and scales of rows."""
    return Fields(_numbers(parts, math.prod(shape)).view(shape), _absmax(parts, state).view(shape[0], -1))


def _numbers(parts: Mapping[str, Tensor], count: int) -> Tensor:
    packed = parts[""].contiguous().flatten().view(torch.uint8)
    return torch.stack((packed >> 4, packed & 15), -1).flatten()[:count]


def _absmax(parts: Mapping[str, Tensor], state: Mapping[str, Any]) -> Tensor:
    """fp32 `[blocks]`."""
    absmax = parts["absmax"]
    if absmax.dtype != torch.uint8:
        return absmax
    nested = parts["nested_absmax"].float().repeat_interleave(state["nested_blocksize"])[: len(absmax)]
    return parts["nested_quant_map"].float().index_select(0, absmax.int()) * nested + state["nested_offset"]


def _of_int8(infos: Infos, module: str) -> Packed:
    title, name = f"{TITLE} int8", f"{module}{PLAIN}"
    stored, factors = (part(infos, module, each, title) for each in (PLAIN, "SCB"))
    rows, columns = stored.shape if len(stored.shape) == 2 else (0, 0)
    expect(name, stored, (rows, columns), ("I8",), title)
    expect(f"{module}SCB", factors, (rows,), FLOATS, title)
    names, idle = {PLAIN: name, "SCB": f"{module}SCB"}, tuple[str, ...]()
    if (layout := infos.get(f"{module}weight_format")) is not None:
        expect(f"{module}weight_format", layout, (), ("U8",), title)
        if (value := look(layout)) is not None and int(value):
            raise ValueError(f"{module}weight_format is {int(value)}: a layout for GPUs, only 0 (rows) is read")
        idle = (f"{module}weight_format",)
    stays = Stays(Grouped(8, 0, torch.float32, zero=128), fields_of_int8, by_rows=True)
    return Packed(title, (rows, columns), names, dequantise_int8, idle, stays)


def dequantise_int8(parts: Mapping[str, Tensor]) -> Tensor:
    """fp32 `[O, I]`."""
    return parts[PLAIN].float().mul_(parts["SCB"].float()[:, None]).div_(127)


def fields_of_int8(parts: Mapping[str, Tensor]) -> Fields:
    """The same as numbers, 128 above what they stand for, and scales of rows."""
    return Fields(parts[PLAIN].view(torch.uint8) ^ 128, parts["SCB"].float()[:, None] / 127)
