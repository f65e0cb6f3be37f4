"""How published tools store quantised matrices, one file per format.

A format stores the matrix `X.weight` `[O, I]` as several tensors: integers or small floats packed in words, factors,
zeros, tables. Its file says what these are called, how they are packed and how the matrix is computed from them; to
everything else such a matrix is one tensor of the plain name, whose values are made when they are asked for. So rules,
layouts and families know nothing of formats, and each part of a fused parameter keeps factors of its own.

Tensors tell formats apart, by the endings of their names, by types and shapes: what config.json says of a quantisation
is often missing or wrong, and only asked for what the tensors cannot say.
"""

from __future__ import annotations

from minillm.weights.formats import awq, bitsandbytes, gptq, mlx, refused, torchao
from minillm.weights.formats.packed import Format, Infos, Packed, Section

FORMATS: tuple[Format, ...] = (refused, gptq, awq, bitsandbytes, mlx, torchao)


def gathered(infos: Infos, section: Section) -> dict[str, Packed]:
    """All matrices that the tensors hold in some format, by their plain names. Raises ValueError for one that two
    formats claim, or that is there as a plain tensor too."""
    found: dict[str, Packed] = {}
    for format in FORMATS:
        for name, packed in format.matrices(infos, section).items():
            if name in found or (name in infos and name not in packed.parts.values()):
                other = found[name].title if name in found else "a plain tensor"
                raise ValueError(f"{name} is there twice, as {packed.title} and as {other}; download it again")
            found[name] = packed
    return found
