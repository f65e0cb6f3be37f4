"""How published tools store quantised matrices, one file per format.

A format stores the matrix `X.weight` `[O, I]` as several tensors: integers or small floats packed in words, factors,
zeros, tables. Its file says what these are called, how they are packed and how the matrix is computed from them; to
everything else such a matrix is one tensor of the plain name, whose values are made when they are asked for. So rules,
layouts and families know nothing of formats, and each part of a fused parameter keeps factors of its own.

Tensors tell formats apart, by the endings of their names, by types and shapes: what config.json says of a quantisation
is often missing or wrong, and only asked for what the tensors cannot say.
"""

from __future__ import annotations

from collections.abc import Collection

from minillm.weights.formats import (
    awq,
    awq_bytes,
    bitsandbytes,
    fp8_blocks,
    fp8_scaled,
    gptq,
    int8_scaled,
    int_packed,
    integers,
    mlx,
    mx,
    nvfp4,
    powers,
    refused,
    torchao,
)
from minillm.weights.formats.packed import PLAIN, Format, Infos, Packed, Section, matrix_name, spelled
from minillm.weights.formats.stated import refuse

FORMATS: tuple[Format, ...] = (
    refused, integers, gptq, awq, bitsandbytes, mlx, torchao, int_packed, int8_scaled, fp8_blocks, fp8_scaled, nvfp4,
    mx, powers, awq_bytes,
)  # fmt: skip
# Factors and zeros of activations, which are not quantised here: of a module's input, and of what a cache holds.
INPUTS = ("input_scale", "input_zero_point", "input_global_scale", "input_scale_ub")
CACHED = ("k_scale", "v_scale")


def gathered(infos: Infos, section: Section) -> dict[str, Packed]:
    """All matrices that the tensors hold in some format, by their plain names. Raises ValueError for one that two
    formats claim, or that is there as a plain tensor too."""
    refuse(section)
    found: dict[str, Packed] = {}
    for format in FORMATS:
        for name, packed in format.matrices(infos, section).items():
            if name in found or (name in infos and name not in packed.parts.values()):
                other = found[name].title if name in found else "a plain tensor"
                raise ValueError(f"{name} is there twice, as {packed.title} and as {other}; download it again")
            found[name] = packed
    return found


def idle(names: Collection[str], matrices: Collection[str]) -> list[str]:
    """The tensors that quantise activations, beside quantised matrices of these plain names."""
    found = [name for name in names if matrices and name.rpartition(".")[2] in CACHED]
    for matrix in matrices:
        module = matrix.removesuffix(PLAIN)
        found += [f"{module}{each}" for each in INPUTS if f"{module}{each}" in names]
    return found


def plain(names: Collection[str]) -> list[str]:
    """What the tensors of a folder are called once matrices are gathered, as far as names tell."""
    left, found, parts = set(names), dict[str, None](), set[str]()
    for format in FORMATS:
        for needed in format.SPELLINGS:
            for module, held in spelled(left, needed, format.OPTIONAL).items():
                found[matrix_name(module, needed)] = None
                parts.update(held.values())
    return [*found, *sorted(left - parts - set(found) - set(idle(left, found)))]
