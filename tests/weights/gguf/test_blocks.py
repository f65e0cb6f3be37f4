"""Blocks value by value: each kind's formula for the i-th value of a block, as its layout says, against what is made of
whole rows at once. (Equality with llama.cpp itself is in `test_fixtures.py`.)"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.weights.gguf import grids
from minillm.weights.gguf.kinds import KINDS

F = np.float32
NAMED = {kind.name: kind for kind in KINDS.values()}
NONLINEAR = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def half(b: bytes, at: int) -> np.float32:
    return F(np.frombuffer(b[at : at + 2], "<f2")[0])


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def word(b: bytes, at: int, size: int) -> int:
    return int.from_bytes(b[at : at + size], "little")


def bit(b: bytes, i: int) -> int:
    return b[i // 8] >> i % 8 & 1


def four(b: bytes, i: int) -> int:
    """Of 32 codes in 16 bytes."""
    return b[i % 16] >> 4 * (i // 16) & 15


def scale_and_minimum(s: bytes, j: int) -> tuple[int, int]:
    if j < 4:
        return s[j] & 63, s[j + 4] & 63
    return s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4


def q2_k(b: bytes, i: int) -> np.float32:
    code = b[16 + 32 * (i // 128) + i % 32] >> 2 * (i // 32 % 4) & 3
    s = b[i // 16]
    return half(b, 80) * F(s & 15) * F(code) - half(b, 82) * F(s >> 4)


def q3_k(b: bytes, i: int) -> np.float32:
    code = b[32 + 32 * (i // 128) + i % 32] >> 2 * (i // 32 % 4) & 3
    third, j, s = b[i % 32] >> i // 32 & 1, i // 16, b[96:108]
    low, high = s[j % 8] >> 4 * (j // 8) & 15, s[8 + j % 4] >> 2 * (j // 4) & 3
    return half(b, 108) * F((low | high << 4) - 32) * F(code - (0 if third else 4))


def q4_k(b: bytes, i: int) -> np.float32:
    s, m = scale_and_minimum(b[4:16], i // 32)
    code = b[16 + 32 * (i // 64) + i % 32] >> 4 * (i // 32 % 2) & 15
    return half(b, 0) * F(s) * F(code) - half(b, 2) * F(m)


def q5_k(b: bytes, i: int) -> np.float32:
    s, m = scale_and_minimum(b[4:16], i // 32)
    code = b[48 + 32 * (i // 64) + i % 32] >> 4 * (i // 32 % 2) & 15 | (b[16 + i % 32] >> i // 32 & 1) << 4
    return half(b, 0) * F(s) * F(code) - half(b, 2) * F(m)


def q6_k(b: bytes, i: int) -> np.float32:
    part, j = i // 128, i % 128
    low = b[64 * part + j % 64] >> 4 * (j // 64) & 15
    high = b[128 + 32 * part + j % 32] >> 2 * (j // 32) & 3
    return half(b, 208) * F(signed(b[192 + i // 16])) * F((low | high << 4) - 32)


def iq4_xs(b: bytes, i: int) -> np.float32:
    j = i // 32
    s = b[4 + j // 2] >> 4 * (j % 2) & 15 | (word(b, 2, 2) >> 2 * j & 3) << 4
    return half(b, 0) * F(s - 32) * F(NONLINEAR[four(b[8 + 16 * j : 24 + 16 * j], i % 32)])


def tq1_0(b: bytes, i: int) -> np.float32:
    if i < 160:
        byte, power = b[i % 32], i // 32
    elif i < 240:
        byte, power = b[32 + (i - 160) % 16], (i - 160) // 16
    else:
        byte, power = b[48 + (i - 240) % 4], (i - 240) // 4
    return half(b, 52) * F((byte * 3**power % 256 * 3 >> 8) - 1)


def tq2_0(b: bytes, i: int) -> np.float32:
    return half(b, 64) * F((b[32 * (i // 128) + i % 32] >> 2 * (i // 32 % 4) & 3) - 1)


def mxfp4(b: bytes, i: int) -> np.float32:
    return F(2.0 ** (b[0] - 128)) * F(2 * E2M1[four(b[1:], i)])


def nvfp4(b: bytes, i: int) -> np.float32:
    j, s = i // 16, b[i // 16] & 127
    scale = s % 8 * 2.0**-9 if s < 8 else (1 + s % 8 / 8) * 2.0 ** (s // 8 - 7)
    scale = 0 if b[j] == 127 else scale
    return F(scale * E2M1[b[4 + 8 * j + i % 8] >> 4 * (i % 16 // 8) & 15])


def signs(seven: int, j: int) -> int:
    eighth = seven | seven.bit_count() % 2 << 7
    return -1 if eighth >> j & 1 else 1


def point(name: str, code: int, j: int) -> np.float32:
    return F(grids._grid(name)[code, j].item())


def iq2_xxs(b: bytes, i: int) -> np.float32:
    at, j = 2 + 8 * (i // 32), i % 32 // 8
    last = word(b, at + 4, 4)
    s = F(0.5) + F(last >> 28)
    return half(b, 0) * s * F(0.25) * point("iq2_xxs", b[at + j], i % 8) * signs(last >> 7 * j & 127, i % 8)


def iq2_xs(b: bytes, i: int) -> np.float32:
    code = word(b, 2 + 2 * (i // 8), 2)
    s = F(0.5) + F(b[66 + i // 32] >> 4 * (i // 16 % 2) & 15)
    return half(b, 0) * s * F(0.25) * point("iq2_xs", code & 511, i % 8) * signs(code >> 9, i % 8)


def iq2_s(b: bytes, i: int) -> np.float32:
    code = b[2 + i // 8] | (b[66 + i // 32] >> 2 * (i // 8 % 4) & 3) << 8
    s = F(0.5) + F(b[74 + i // 32] >> 4 * (i // 16 % 2) & 15)
    return half(b, 0) * s * F(0.25) * point("iq2_s", code, i % 8) * (1 - 2 * bit(b[34:66], i))


def iq3_xxs(b: bytes, i: int) -> np.float32:
    last = word(b, 66 + 4 * (i // 32), 4)
    s = F(0.5) + F(last >> 28)
    sign = signs(last >> 7 * (i % 32 // 8) & 127, i % 8)
    return half(b, 0) * s * F(0.5) * point("iq3_xxs", b[2 + i // 4], i % 4) * sign


def iq3_s(b: bytes, i: int) -> np.float32:
    code = b[2 + i // 4] | bit(b[66:74], i // 4) << 8
    s = 1 + 2 * (b[106 + i // 64] >> 4 * (i // 32 % 2) & 15)
    return half(b, 0) * F(s) * point("iq3_s", code, i % 4) * (1 - 2 * bit(b[74:106], i))


def iq1_s(b: bytes, i: int) -> np.float32:
    high = word(b, 34 + 2 * (i // 32), 2)
    code = b[2 + i // 8] | (high >> 3 * (i // 8 % 4) & 7) << 8
    shift = F(-0.125 if high >> 15 else 0.125)
    return half(b, 0) * F(2 * (high >> 12 & 7) + 1) * (point("iq1_s", code, i % 8) + shift)


def iq1_m(b: bytes, i: int) -> np.float32:
    high = b[32 + i // 16] >> 4 * (i // 8 % 2) & 15
    code = b[i // 8] | (high & 7) << 8
    words = [word(b, 48 + 2 * j, 2) for j in range(4)]
    d = half(sum((each >> 12) << 4 * j for j, each in enumerate(words)).to_bytes(2, "little"), 0)
    s = words[i // 64] >> 3 * (i // 16 % 4) & 7
    shift = F(-0.125 if high >> 3 else 0.125)
    return d * F(2 * s + 1) * (point("iq1_s", code, i % 8) + shift)


# The formula, and where the fp16 numbers of a block are.
FORMULAS: dict[str, tuple[Callable[[bytes, int], np.float32], tuple[int, ...]]] = {
    "F32": (lambda b, i: F(np.frombuffer(b, "<f4")[0]), ()),
    "F16": (lambda b, i: half(b, 0), (0,)),
    "BF16": (lambda b, i: F(np.frombuffer(b"\0\0" + b, "<f4")[0]), ()),
    "Q4_0": (lambda b, i: half(b, 0) * F(four(b[2:], i) - 8), (0,)),
    "Q4_1": (lambda b, i: half(b, 0) * F(four(b[4:], i)) + half(b, 2), (0, 2)),
    "Q5_0": (lambda b, i: half(b, 0) * F((four(b[6:], i) | bit(b[2:], i) << 4) - 16), (0,)),
    "Q5_1": (lambda b, i: half(b, 0) * F(four(b[8:], i) | bit(b[4:], i) << 4) + half(b, 2), (0, 2)),
    "Q8_0": (lambda b, i: half(b, 0) * F(signed(b[2 + i])), (0,)),
    "Q1_0": (lambda b, i: half(b, 0) if bit(b[2:], i) else -half(b, 0), (0,)),
    "Q2_0": (lambda b, i: half(b, 0) * F((b[2 + i // 4] >> 2 * (i % 4) & 3) - 1), (0,)),
    "IQ4_NL": (lambda b, i: half(b, 0) * F(NONLINEAR[four(b[2:], i)]), (0,)),
    "MXFP4": (mxfp4, ()),
    "NVFP4": (nvfp4, ()),
    "Q2_K": (q2_k, (80, 82)),
    "Q3_K": (q3_k, (108,)),
    "Q4_K": (q4_k, (0, 2)),
    "Q5_K": (q5_k, (0, 2)),
    "Q6_K": (q6_k, (208,)),
    "IQ4_XS": (iq4_xs, (0,)),
    "TQ1_0": (tq1_0, (52,)),
    "TQ2_0": (tq2_0, (64,)),
    "IQ2_XXS": (iq2_xxs, (0,)),
    "IQ2_XS": (iq2_xs, (0,)),
    "IQ2_S": (iq2_s, (0,)),
    "IQ3_XXS": (iq3_xxs, (0,)),
    "IQ3_S": (iq3_s, (0,)),
    "IQ1_S": (iq1_s, (0,)),
    "IQ1_M": (iq1_m, ()),
}


def test_every_kind_with_a_formula_is_here() -> None:
    assert set(FORMULAS) == {name for name, kind in NAMED.items() if kind.make or kind.form}


@pytest.mark.parametrize("name", FORMULAS)
@given(data=st.data())
@np.errstate(all="ignore")
def test_blocks_value_by_value(name: str, data: st.DataObject) -> None:
    """Any bytes; fp16 numbers are finite, as the sign of what is none is nobody's."""
    kind, (formula, halves) = NAMED[name], FORMULAS[name]
    blocks = [bytearray(data.draw(st.binary(min_size=kind.nbytes, max_size=kind.nbytes))) for _ in range(2)]
    for block in blocks:
        for at in halves:
            block[at : at + 2] = np.float16(data.draw(st.floats(-1000, 1000, width=16))).tobytes()
    raw = torch.frombuffer(bytearray().join(blocks), dtype=torch.uint8).view(2, kind.nbytes)
    found = kind.dequantise(raw)
    assert (found.dtype, found.shape) == (torch.float32, (2, kind.block))
    exact = np.array([[formula(bytes(block), i) for i in range(kind.block)] for block in blocks], dtype=F)
    np.testing.assert_array_equal(found.numpy(), exact)


def test_sizes_of_grids() -> None:
    """As many points as a code can name, each another; 1-bit grids leave out some."""
    sizes = {"iq2_xxs": (256, 8), "iq2_xs": (512, 8), "iq2_s": (1024, 8), "iq3_xxs": (256, 4), "iq3_s": (512, 4),
             "iq1_s": (2048, 8)}  # fmt: skip
    for name, shape in sizes.items():
        grid = grids._grid(name)
        assert tuple(grid.shape) == shape
        assert len({tuple(point) for point in grid.tolist()}) == shape[0]
        assert math.isfinite(float(grid.sum()))
