"""MLX: rows as streams of bits, integers with a bias for each group or floats, and bits that config.json must say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.weights.formats.by_hand import MATRIX, dequantised, found, in_memory, integers, matrix, rows


def small_float(code: int, exponents: int, fractions: int) -> float:
    """A float of one sign bit, some of exponent and some of fraction, with the usual bias and without infinities."""
    exponent, fraction = code >> fractions & (2**exponents - 1), code & (2**fractions - 1)
    bias = 2 ** (exponents - 1) - 1
    size = 2.0 ** (max(exponent, 1) - bias) * (fraction / 2**fractions + (exponent > 0))
    return -size if code >> (exponents + fractions) & 1 else size


@given(
    st.sampled_from((2, 3, 4, 5, 6, 8)), st.integers(1, 4), st.sampled_from((32, 64)), st.integers(1, 3),
    st.sampled_from((torch.float32, torch.bfloat16, torch.float16)), st.integers(0, 99),
)  # fmt: skip
def test_affine(bits: int, outputs: int, size: int, groups: int, dtype: torch.dtype, seed: int) -> None:
    q = integers(0, 2**bits, (outputs, groups * size), seed)
    scales, biases = (integers(-64, 64, (outputs, groups), seed + n).div(16).to(dtype) for n in (1, 2))
    tensors = {"weight": rows(q, bits, torch.uint32), "scales": scales, "biases": biases}
    section = {"bits": bits, "group_size": size}
    made = dequantised(tensors, section)
    expected = torch.empty(q.shape)
    for o in range(outputs):
        for i in range(groups * size):
            expected[o, i] = q[o, i] * scales[o, i // size].float() + biases[o, i // size].float()
    assert torch.equal(made, expected)
    assert torch.equal(in_memory(tensors, section), expected)


@pytest.mark.parametrize(
    ("mode", "bits", "size", "low", "high"),
    [("mxfp4", 4, 32, 100, 140), ("mxfp8", 8, 32, 100, 140), ("nvfp4", 4, 16, 0, 127)],
)
@pytest.mark.parametrize("seed", range(4))
def test_floats(mode: str, bits: int, size: int, low: int, high: int, seed: int) -> None:
    q = integers(0, 2**bits, (3, 64), seed)
    if bits == 8:
        q[q % 128 == 127] = 0  # no numbers
    scales = integers(low, high, (3, 64 // size), seed + 1)
    tensors = {"weight": rows(q, bits, torch.uint32), "scales": scales.to(torch.uint8)}
    section = {"bits": bits, "group_size": size, "mode": mode}
    made = dequantised(tensors, section)
    shape = (2, 1) if bits == 4 else (4, 3)
    for o in range(3):
        for i in range(64):
            s = int(scales[o, i // size])
            factor = small_float(s, 4, 3) if mode == "nvfp4" else math.ldexp(1, s - 127)
            assert float(made[o, i]) == small_float(int(q[o, i]), *shape) * factor
    assert torch.equal(in_memory(tensors, section), made)


def test_a_module_of_its_own_and_experts() -> None:
    """Modules under their names in the section; matrices of all experts in one tensor."""
    q = integers(0, 64, (2, 3, 32), 0)
    stored = torch.stack([rows(each, 6, torch.uint32) for each in q])
    ones = torch.ones(2, 3, 1)
    tensors = {MATRIX: stored, "model.m.scales": ones, "model.m.biases": 2 * ones}
    section = {"bits": 4, "group_size": 64, "model.m": {"bits": 6, "group_size": 32}}
    assert torch.equal(matrix(tensors, section), q + 2.0)


def parts(**changes: Tensor | None) -> dict[str, Tensor]:
    made: dict[str, Tensor | None] = {
        "weight": rows(integers(0, 16, (2, 64), 0), 4, torch.uint32),
        "scales": torch.ones(2, 1),
        "biases": torch.ones(2, 1),
        **changes,
    }
    return {f"model.m.{name}": each for name, each in made.items() if each is not None}


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ({"bits": None}, {}, "bits of quantization is None for model.m, MLX affine has 2, 3, 4, 5, 6, 8"),
        ({"bits": 7}, {}, "bits of quantization is 7"),
        ({"group_size": None}, {}, "group_size of quantization is None for model.m, expected a positive number"),
        ({"mode": "spiral"}, {}, "mode of quantization is 'spiral' for model.m, MLX has affine, mxfp4"),
        ({"mode": "mxfp4"}, {}, "group_size of quantization is 64 for model.m, expected 32"),
        ({"mode": "mxfp4", "group_size": 32, "bits": 8}, {}, "bits of quantization is 8 for model.m, MLX mxfp4 has 4"),
        ({"bits": 8}, {}, r"model.m.weight is .2, 8.: 32 inputs are no whole groups of 64"),
        ({"group_size": 32}, {}, r"model.m.scales is .2, 1., MLX affine of 4 bits in groups of 32 makes it .2, 2."),
        ({"model.m": {"bits": 2}}, {}, r"model.m.scales is .2, 1., MLX affine of 2 bits in groups of 64 makes it"),
        ({"model.m": False}, {}, "model.m.scales is there, but config.json says that model.m is not quantised"),
        ({}, {"biases": None}, "model.m.biases is missing"),
        ({}, {"biases": torch.ones(2, 2)}, r"model.m.biases is .2, 2."),
        ({}, {"scales": torch.ones(2, 1, dtype=torch.uint8)}, "model.m.scales is U8, MLX affine of 4 bits"),
    ],
)
def test_what_does_not_fit_is_named(section: dict[str, Any], changes: dict[str, Tensor | None], message: str) -> None:
    said = {key: value for key, value in {"bits": 4, "group_size": 64, **section}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        found(parts(**changes), said)
