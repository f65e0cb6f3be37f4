"""How the quantisation schemes of published checkpoints lay a matrix out: as which tensors, of what type and shape.

Each takes the name and shape of the plain tensor and what config.json says of the scheme, and raises ValueError where
that is none that it is known for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minillm.weights import fp8
from minillm.weights.formats import fp8_blocks, mx

Shape = tuple[int, ...]
Entries = dict[str, tuple[str, Shape]]  # type in the words of safetensors, and shape
Section = Mapping[str, Any]
GROUP = ("weights", "input_activations")  # what compressed-tensors says of a group of matrices


def _fp8(name: str, shape: Shape, section: Section) -> Entries:
    """Factors of blocks, or one of the tensor, and with static activations one of its input; where experts have a type
    of their own all factors are powers of two, and those of experts may be of 32 values of FP4."""
    if section.get("expert_dtype") is not None:
        return _powers(name, shape, section)
    block = section.get("weight_block_size")
    if block is not None:
        if block != [fp8.BLOCK, fp8.BLOCK]:
            raise ValueError(f"how fp8 in blocks of {str(block)[:40]} lays tensors out is not known")
        return {name: (fp8.NAME, shape), f"{name}{fp8_blocks.SCALE}": ("F32", fp8_blocks.factors(shape))}
    found: Entries = {name: (fp8.NAME, shape), f"{name}_scale": ("F32", (1,))}
    if section.get("activation_scheme") == "static":
        found[f"{name.removesuffix('weight')}input_scale"] = ("F32", (1,))
    return found


def _powers(name: str, shape: Shape, section: Section) -> Entries:
    (rows, columns), scale = _matrix(name, shape), f"{name.removesuffix('weight')}scale"
    if section.get("quantized_layers"):
        raise ValueError("how its quantized_layers lie beside the others is not known")
    if section["expert_dtype"] != "fp4" or ".experts." not in name:
        return {name: (fp8.NAME, shape), scale: ("F8_E8M0", fp8_blocks.factors(shape))}
    if columns % mx.BLOCK:
        raise ValueError(f"how fp4 lays {name} out is not known: rows of {columns} values are no whole blocks")
    return {name: ("I8", (rows, columns // 2)), scale: ("F8_E8M0", (rows, columns // mx.BLOCK))}


def _mxfp4(name: str, shape: Shape, section: Section) -> Entries:
    *rows, columns = shape
    if columns % mx.BLOCK:
        raise ValueError(f"how mxfp4 lays {name} out is not known: rows of {columns} values are no whole blocks")
    factors = (*rows, columns // mx.BLOCK)
    return {f"{name}_blocks": ("U8", (*factors, mx.BLOCK // 2)), f"{name}_scales": ("U8", factors)}


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


def _compressed(name: str, shape: Shape, section: Section) -> Entries:
    """compressed-tensors, where all matrices are in one group; plain factors are in the model's own type."""
    (rows, columns), stem, groups = _matrix(name, shape), name.removesuffix("weight"), section.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise ValueError("which of its matrices are in which group is not known")
    (group,) = groups.values()
    weights, inputs = (group.get(key) or {} if isinstance(group, Mapping) else {} for key in GROUP)
    if not isinstance(weights, Mapping) or not isinstance(inputs, Mapping):
        raise ValueError("what its group of matrices says is not known")
    made, bits = group.get("format") or section.get("format"), weights.get("num_bits")
    factors, dtype = _factors(rows, columns, weights), str(section.get("dtype", "BF16"))
    plain: Entries = {f"{stem}weight_scale": (dtype, factors)}
    static = bool(inputs) and inputs.get("dynamic") is False
    activations: Entries = {f"{stem}input_scale": (dtype, (1,))} if static else {}
    if made == "pack-quantized" and type(bits) is int and 2 <= bits <= 8:
        words: Entries = {
            f"{stem}weight_packed": ("I32", (rows, -(-columns * bits // 32))),
            f"{stem}weight_shape": ("I64", (2,)),
        }
        zeros = {f"{stem}weight_zero_point": ("I32", (-(-rows * bits // 32), factors[-1]))}
        order = {f"{stem}weight_g_idx": ("I32", (columns,))}
        free = weights.get("symmetric") is not False
        return words | plain | ({} if free else zeros) | (order if weights.get("actorder") == "group" else {})
    if made == "int-quantized":
        zero = {f"{stem}input_zero_point": ("I8", (1,))} if static and inputs.get("symmetric") is False else {}
        return {name: ("I8", shape)} | plain | activations | zero
    if made == "float-quantized":
        return {name: (fp8.NAME, shape)} | plain | activations
    if made == "nvfp4-pack-quantized":
        sides = ("weight", "input") if inputs else ("weight",)
        return {
            f"{stem}weight_packed": ("U8", (rows, columns // 2)),
            f"{stem}weight_scale": (fp8.NAME, (rows, columns // 16)),
            **{f"{stem}{side}_global_scale": ("F32", (1,)) for side in sides},
        }
    if made == "mxfp4-pack-quantized":
        return {f"{stem}weight_packed": ("U8", (rows, columns // 2)), f"{stem}weight_scale": ("U8", factors)}
    if made == "mxfp8-quantized":
        return {name: (fp8.NAME, shape), f"{stem}weight_scale": ("U8", factors)}
    raise ValueError(f"how compressed-tensors lays {str(made)[:40]} out is not known")


def _factors(rows: int, columns: int, weights: Section) -> Shape:
    """How many factors a matrix has."""
    strategy, size, block = (weights.get(key) for key in ("strategy", "group_size", "block_structure"))
    if strategy in ("tensor", "channel"):
        return (1,) if strategy == "tensor" else (rows, 1)
    if strategy in ("group", "tensor_group") and type(size) is int and (size > 0 or size == -1):
        return rows, 1 if size == -1 else -(-columns // size)
    if strategy == "block" and block == [fp8.BLOCK, fp8.BLOCK]:
        return fp8_blocks.factors((rows, columns))
    raise ValueError(f"factors by {str(strategy)[:20]} of {str(size)[:20]} are not known")


def _modelopt(name: str, shape: Shape, section: Section) -> Entries:
    """NVIDIA ModelOpt: all factors but those of groups are one fp32 number."""
    (rows, columns), stem, made = _matrix(name, shape), name.removesuffix("weight"), section.get("quant_algo")
    if made not in ("FP8", "NVFP4") or section.get("kv_cache_quant_algo"):
        raise ValueError(f"how ModelOpt lays {str(made)[:40]} out is not known")
    if made == "FP8":
        return {name: (fp8.NAME, shape)} | {f"{stem}{each}_scale": ("F32", ()) for each in ("weight", "input")}
    return {name: ("U8", (rows, columns // 2)), f"{stem}weight_scale": (fp8.NAME, (rows, columns // 16))} | {
        f"{stem}{each}": ("F32", ()) for each in ("weight_scale_2", "input_scale")
    }


def _fbgemm(name: str, shape: Shape, section: Section) -> Entries:
    """A factor for each row, and a bound for those of activations."""
    (rows, _), stem = _matrix(name, shape), name.removesuffix("weight")
    factors: Entries = {f"{stem}weight_scale": ("F32", (rows, 1)), f"{stem}input_scale_ub": ("F32", ())}
    return {name: (fp8.NAME, shape)} | factors


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
    "compressed-tensors": _compressed,
    "fbgemm_fp8": _fbgemm,
    **dict.fromkeys(("modelopt", "FP8", "NVFP4"), _modelopt),  # where it does not name itself, it names what it made
}
