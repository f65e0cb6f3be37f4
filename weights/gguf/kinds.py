"""The types of blocks that a GGUF file may have: a row of a tensor is a run of blocks of one kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.weights.gguf import grids, simple, superblocks
from minillm.weights.gguf.bits import E2M1_DOUBLED
from minillm.weights.gguf.simple import NONLINEAR
from minillm.weights.grouped import Fields, Grouped


@dataclass(frozen=True)
class Kind:
    """`block` values lie in `nbytes` bytes. Of uint8 `[N, nbytes]`, `make` makes fp32 `[N, block]`, or where there is a
    `form` that they can stay in, `read` makes what goes into that. A kind that PyTorch has a type for is `plain`, that
    type in the words of safetensors."""

    name: str
    block: int
    nbytes: int
    make: Callable[[Tensor], Tensor] | None = None
    plain: str | None = None
    form: Grouped | None = None
    read: Callable[[Tensor], Fields] | None = None

    def dequantise(self, blocks: Tensor) -> Tensor:
        """fp32 `[N, block]` of uint8 `[N, nbytes]`."""
        if self.form is not None and self.read is not None:
            return self.form.values(self.read(blocks))
        assert self.make is not None
        return self.make(blocks)


def _number(word: str, nbytes: int, make: Callable[[Tensor], Tensor] | None = None) -> Kind:
    return Kind(word, 1, nbytes, make, word)


def _held(name: str, block: int, nbytes: int, read: Callable[[Tensor], Fields], form: Grouped) -> Kind:
    return Kind(name, block, nbytes, form=form, read=read)


def _coded(bits: int, group: int, zero: int = 0, minimum: bool = False) -> Grouped:
    """Scales that are whole numbers times the one of 256 values."""
    return Grouped(bits, group, torch.int8, torch.float16, 256, zero, minimum)


_E2M1, _NONLINEAR = tuple(map(float, E2M1_DOUBLED)), tuple(map(float, NONLINEAR))
KINDS = {
    0: _number("F32", 4, simple.f32),
    1: _number("F16", 2, simple.f16),
    2: _held("Q4_0", 32, 18, simple.q4_0, Grouped(4, 32, zero=8)),
    3: _held("Q4_1", 32, 20, simple.q4_1, Grouped(4, 32, minimum=True)),
    6: _held("Q5_0", 32, 22, simple.q5_0, Grouped(5, 32, zero=16)),
    7: _held("Q5_1", 32, 24, simple.q5_1, Grouped(5, 32, minimum=True)),
    8: _held("Q8_0", 32, 34, simple.q8_0, Grouped(8, 32, zero=128)),
    10: Kind("Q2_K", 256, 84, superblocks.q2_k),
    11: Kind("Q3_K", 256, 110, superblocks.q3_k),
    12: _held("Q4_K", 256, 144, superblocks.q4_k, _coded(4, 32, minimum=True)),
    13: _held("Q5_K", 256, 176, superblocks.q5_k, _coded(5, 32, minimum=True)),
    14: _held("Q6_K", 256, 210, superblocks.q6_k, _coded(6, 16, zero=32)),
    16: Kind("IQ2_XXS", 256, 66, grids.iq2_xxs),
    17: Kind("IQ2_XS", 256, 74, grids.iq2_xs),
    18: Kind("IQ3_XXS", 256, 98, grids.iq3_xxs),
    19: Kind("IQ1_S", 256, 50, grids.iq1_s),
    20: _held("IQ4_NL", 32, 18, simple.iq4_nl, Grouped(4, 32, table=_NONLINEAR)),
    21: Kind("IQ3_S", 256, 110, grids.iq3_s),
    22: Kind("IQ2_S", 256, 82, grids.iq2_s),
    23: _held("IQ4_XS", 256, 136, superblocks.iq4_xs,
              Grouped(4, 32, torch.int8, torch.float16, 256, table=_NONLINEAR)),
    24: _number("I8", 1),
    25: _number("I16", 2),
    26: _number("I32", 4),
    27: _number("I64", 8),
    28: _number("F64", 8),
    29: Kind("IQ1_M", 256, 56, grids.iq1_m),
    30: _number("BF16", 2, simple.bf16),
    34: Kind("TQ1_0", 256, 54, superblocks.tq1_0),
    35: Kind("TQ2_0", 256, 66, superblocks.tq2_0),
    39: _held("MXFP4", 32, 17, simple.mxfp4, Grouped(4, 32, torch.bfloat16, table=_E2M1)),
    40: _held("NVFP4", 64, 36, simple.nvfp4, Grouped(4, 16, table=_E2M1)),
    41: Kind("Q1_0", 128, 18, simple.q1_0),
    42: Kind("Q2_0", 64, 18, simple.q2_0),
}  # fmt: skip
REMOVED = {4, 5, *range(31, 34), *range(36, 39)}  # numbers of kinds that no file of today has
