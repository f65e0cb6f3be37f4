"""How the quantisation schemes of published checkpoints lay a matrix out: as which tensors, of what type and shape.

Each takes the name and shape of the plain tensor and what config.json says of the scheme, and raises ValueError where
that is none that it is known for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minillm.weights import fp8, mxfp4

Shape = tuple[int, ...]
Entries = dict[str, tuple[str, Shape]]  # type in the words of safetensors, and shape
Section = Mapping[str, Any]


def _fp8(name: str, shape: Shape, section: Section) -> Entries:
    """Factors of blocks, or one of the tensor, and with static activations one of its input."""
    block = section.get("weight_block_size")
    if block is not None:
        if block != [fp8.BLOCK, fp8.BLOCK]:
            raise ValueError(f"how fp8 in blocks of {str(block)[:40]} lays tensors out is not known")
        factors = (*shape[:-2], *fp8.scale_shape(shape[-2:]))
        return {name: (fp8.NAME, shape), fp8.scale_of(name): ("F32", factors)}
    found: Entries = {name: (fp8.NAME, shape), f"{name}_scale": ("F32", (1,))}
    if section.get("activation_scheme") == "static":
        found[f"{name.removesuffix('weight')}input_scale"] = ("F32", (1,))
    return found


def _mxfp4(name: str, shape: Shape, section: Section) -> Entries:
    if why := mxfp4.unfit(shape):
        raise ValueError(f"how mxfp4 lays {name} out is not known: {why}")
    return {
        f"{name}_blocks": (mxfp4.NAME, mxfp4.stored_shape(shape)),
        f"{name}_scales": (mxfp4.NAME, mxfp4.scale_shape(shape)),
    }


def _int8(name: str, shape: Shape, section: Section) -> Entries:
    """bitsandbytes' LLM.int8 (arXiv:2208.07339): a factor for each row, and a byte that names the layout."""
    stem, (rows, _) = name.removesuffix("weight"), _matrix(name, shape)
    return {name: ("I8", shape), f"{stem}SCB": ("F32", (rows,)), f"{stem}weight_format": ("U8", ())}


def _gptq(name: str, shape: Shape, section: Section) -> Entries:
    """Values packed along the inputs, and the group of each input (arXiv:2210.17323)."""
    rows, columns, bits, groups = _grouped(name, shape, section)
    stem = name.removesuffix("weight")
    return {f"{stem}qweight": ("I32", (columns * bits // 32, rows)), f"{stem}g_idx": ("I32", (columns,))} | {
        f"{stem}qzeros": ("I32", (groups, rows * bits // 32)),
        f"{stem}scales": ("F16", (groups, rows)),
    }


def _awq(name: str, shape: Shape, section: Section) -> Entries:
    """Values packed along the outputs (arXiv:2306.00978)."""
    rows, columns, bits, groups = _grouped(name, shape, section)
    stem = name.removesuffix("weight")
    return {
        f"{stem}qweight": ("I32", (columns, rows * bits // 32)),
        f"{stem}qzeros": ("I32", (groups, rows * bits // 32)),
        f"{stem}scales": ("F16", (groups, rows)),
    }


def _matrix(name: str, shape: Shape) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"how {name} of shape {list(shape)} is laid out is not known")
    return shape[0], shape[1]


def _grouped(name: str, shape: Shape, section: Section) -> tuple[int, int, int, int]:
    """Rows, columns, bits, and groups of a row."""
    (rows, columns), bits, size = _matrix(name, shape), section.get("bits"), section.get("group_size")
    if bits not in (2, 4, 8) or not isinstance(size, int) or isinstance(size, bool) or not (size == -1 or size > 0):
        raise ValueError(f"{str(bits)[:20]} bits in groups of {str(size)[:20]} are not known")
    return rows, columns, bits, 1 if size == -1 else -(-columns // size)


METHODS: dict[str, Callable[[str, Shape, Section], Entries]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "bitsandbytes int8": _int8,
    "gptq": _gptq,
    "awq": _awq,
}
