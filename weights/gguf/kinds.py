"""The types of blocks that a GGUF file may have: a row of a tensor is a run of blocks of one kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from minillm.weights.gguf import grids, simple, superblocks


@dataclass(frozen=True)
class Kind:
    """`block` values lie in `nbytes` bytes; `dequantise` makes fp32 `[N, block]` of uint8 `[N, nbytes]`. One that
    PyTorch has a type for is `plain`, that type in the words of safetensors."""

    name: str
    block: int
    nbytes: int
    dequantise: Callable[[Tensor], Tensor] | None
    plain: str | None = None


def _number(word: str, nbytes: int, dequantise: Callable[[Tensor], Tensor] | None = None) -> Kind:
    return Kind(word, 1, nbytes, dequantise, word)


KINDS = {
    0: _number("F32", 4, simple.f32),
    1: _number("F16", 2, simple.f16),
    2: Kind("Q4_0", 32, 18, simple.q4_0),
    3: Kind("Q4_1", 32, 20, simple.q4_1),
    6: Kind("Q5_0", 32, 22, simple.q5_0),
    7: Kind("Q5_1", 32, 24, simple.q5_1),
    8: Kind("Q8_0", 32, 34, simple.q8_0),
    10: Kind("Q2_K", 256, 84, superblocks.q2_k),
    11: Kind("Q3_K", 256, 110, superblocks.q3_k),
    12: Kind("Q4_K", 256, 144, superblocks.q4_k),
    13: Kind("Q5_K", 256, 176, superblocks.q5_k),
    14: Kind("Q6_K", 256, 210, superblocks.q6_k),
    16: Kind("IQ2_XXS", 256, 66, grids.iq2_xxs),
    17: Kind("IQ2_XS", 256, 74, grids.iq2_xs),
    18: Kind("IQ3_XXS", 256, 98, grids.iq3_xxs),
    19: Kind("IQ1_S", 256, 50, grids.iq1_s),
    20: Kind("IQ4_NL", 32, 18, simple.iq4_nl),
    21: Kind("IQ3_S", 256, 110, grids.iq3_s),
    22: Kind("IQ2_S", 256, 82, grids.iq2_s),
    23: Kind("IQ4_XS", 256, 136, superblocks.iq4_xs),
    24: _number("I8", 1),
    25: _number("I16", 2),
    26: _number("I32", 4),
    27: _number("I64", 8),
    28: _number("F64", 8),
    29: Kind("IQ1_M", 256, 56, grids.iq1_m),
    30: _number("BF16", 2, simple.bf16),
    34: Kind("TQ1_0", 256, 54, superblocks.tq1_0),
    35: Kind("TQ2_0", 256, 66, superblocks.tq2_0),
    39: Kind("MXFP4", 32, 17, simple.mxfp4),
    40: Kind("NVFP4", 64, 36, simple.nvfp4),
    41: Kind("Q1_0", 128, 18, simple.q1_0),
    42: Kind("Q2_0", 64, 18, simple.q2_0),
}
REMOVED = {4, 5, *range(31, 34), *range(36, 39)}  # numbers of kinds that no file of today has
