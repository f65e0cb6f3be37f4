"""Integers packed in words by compressed-tensors, against an encoder that sets one bit after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.weights.formats.by_hand import dequantised, group


def words(numbers: list[list[int]], bits: int, dense: bool = True) -> Tensor:
    """Rows of numbers as int32: number k of a row has bits k * bits …, or no word has a part of a number."""
    made = []
    for row in numbers:
        stream = 0
        for at, number in enumerate(row):
            each = 32 // bits
            stream |= number << (at * bits if dense else at // each * 32 + at % each * bits)
        count = -(-len(row) * bits // 32) if dense else -(-len(row) // (32 // bits))
        unsigned = [stream >> 32 * word & 0xFFFFFFFF for word in range(count)]
        made.append([word - 2**32 if word >= 2**31 else word for word in unsigned])
    return torch.tensor(made, dtype=torch.int32)


@st.composite
def matrices(draw: st.DrawFn) -> dict[str, Any]:
    bits, size = draw(st.integers(2, 8)), draw(st.sampled_from([1, 3, 8, 16]))
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 50))
    groups = -(-columns // size)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def numbers(*shape: int) -> Tensor:
        return torch.randint(0, 2**bits, shape, generator=generator)

    order = torch.arange(columns) // size
    if draw(st.booleans()):
        order = order[torch.randperm(columns, generator=generator)]
    return {
        "bits": bits, "size": size, "q": numbers(rows, columns), "z": numbers(rows, groups), "order": order,
        "scale": torch.rand(rows, groups, generator=generator) + 0.5,
        "symmetric": draw(st.booleans()),
        "dense": draw(st.booleans()) or -(-columns * bits // 32) == -(-columns // (32 // bits)),
    }  # fmt: skip


@given(matrices())
def test_round_trip(given: dict[str, Any]) -> None:
    """All bits, with and without zeros, in groups that lie in a row or anywhere, the last of them short."""
    bits, q, z, scale = (given[key] for key in ("bits", "q", "z", "scale"))
    rows, columns = q.shape
    tensors = {
        "weight_packed": words(q.tolist(), bits, given["dense"]),
        "weight_scale": scale.bfloat16(),
        "weight_shape": torch.tensor([rows, columns]),
        "weight_g_idx": given["order"].int(),
    }
    if given["symmetric"]:
        z = torch.full_like(z, 2 ** (bits - 1))
    else:
        tensors["weight_zero_point"] = words(z.t().tolist(), bits, given["dense"]).t().contiguous()
    section = group(num_bits=bits, type="int", strategy="group", group_size=given["size"])
    made = dequantised(tensors, section)
    for o in range(rows):
        for i in range(columns):
            g = int(given["order"][i])
            assert made[o, i] == float(q[o, i] - z[o, g]) * float(scale.bfloat16()[o, g])


WORD = {
    "weight_packed": torch.tensor([[0x76543210], [-1]], dtype=torch.int32),
    "weight_scale": torch.tensor([[2.0], [0.5]]),
    "weight_shape": torch.tensor([2, 7]),
}
FOUR = group(num_bits=4, type="int", strategy="channel")


def test_numbers_lie_from_the_low_end_and_eight_is_zero() -> None:
    """Row 0 has 0 … 6, that is -8 … -2, times 2; the eighth number of the word is no value of the matrix."""
    expected = [[-16, -14, -12, -10, -8, -6, -4], [3.5] * 7]
    assert dequantised(WORD, FOUR).tolist() == expected
    assert dequantised({**WORD, "weight_g_idx": torch.full((7,), -1)}, FOUR).tolist() == expected
    assert dequantised(
        {**WORD, "weight_scale": torch.tensor([2.0])}, group(num_bits=4, strategy="tensor")
    ).tolist() == [
        expected[0],
        [14.0] * 7,
    ]


def test_zeros_before_they_were_packed() -> None:
    made = dequantised({**WORD, "weight_zero_point": torch.tensor([[-8], [7]], dtype=torch.int8)}, FOUR)
    assert made.tolist() == [[0, 2, 4, 6, 8, 10, 12], [0.0] * 7]


def test_without_a_section() -> None:
    """Without a section the tensors tell: 8 words for 64 values are 4 bits, two factors of a row are of 32 values."""
    tensors = {
        "weight_packed": torch.zeros(1, 8, dtype=torch.int32),
        "weight_scale": torch.tensor([[1.0, 2.0]]),
        "weight_shape": torch.tensor([1, 64]),
    }
    assert dequantised(tensors, {}).tolist() == [[-8.0] * 32 + [-16.0] * 32]


@pytest.mark.parametrize(
    ("changes", "section", "message"),
    [
        ({"weight_shape": torch.tensor([2, 9])}, FOUR, "m.weight_packed has 1 words for 9 values, which 4 bits"),
        ({"weight_shape": torch.tensor([3, 7])}, FOUR, r"m.weight_shape says \[3, 7\], weight_packed is \[2, 1\]"),
        ({"weight_shape": torch.tensor([2, -7])}, FOUR, r"m.weight_shape says \[2, -7\]"),
        ({"weight_shape": torch.tensor([2, 7, 1])}, FOUR, r"m.weight_shape is \[3\]"),
        ({"weight_scale": torch.ones(2, 3)}, FOUR, r"m.weight_scale is \[2, 3\]"),
        ({"weight_scale": torch.ones(3, 1)}, FOUR, r"m.weight_scale is \[3, 1\]"),
        ({"weight_scale": torch.ones(2, 1, dtype=torch.int32)}, FOUR, "m.weight_scale is I32"),
        ({"weight_zero_point": torch.ones(2, 1, dtype=torch.int32)}, FOUR, r"m.weight_zero_point is \[2, 1\]"),
        ({"weight_g_idx": torch.ones(6, dtype=torch.int32)}, FOUR, r"m.weight_g_idx is \[6\]"),
        ({"weight_g_idx": torch.ones(7, dtype=torch.int32)}, FOUR, "m.weight: weight_g_idx names group 1, there are 1"),
        ({}, group(num_bits=4, symmetric=False), "m.weight_zero_point is missing, and config.json says"),
        ({}, group(num_bits=5, strategy="channel"), "which 5 bits do not explain"),
        ({}, group(num_bits=4, strategy="group", group_size=4), r"m.weight_scale is \[2, 1\]: \[2, 7\] values"),
        ({}, group(num_bits=4, strategy="group", group_size=0), "group_size is .0., expected 1 positive number"),
        ({}, group(num_bits=4, strategy="spiral"), "strategy 'spiral' is not known"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_what_does_not_fit_is_named(changes: dict[str, Tensor], section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dequantised({**WORD, **changes}, section)
