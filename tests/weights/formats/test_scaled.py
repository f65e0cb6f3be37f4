"""Int8 and FP8 with factors, NVFP4, MX and ModelOpt's AWQ, against one value at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minillm.weights import formats
from tests.weights.formats.by_hand import dequantised, found, group, in_memory

E4M3, SEEDS = torch.float8_e4m3fn, st.integers(0, 2**31)
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]  # and with bit 3 their negatives


def random_bytes(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def finite(stored: Tensor) -> Tensor:
    """Bytes as e4m3, without its two that are no numbers."""
    return torch.where(stored & 127 == 127, 0, stored).view(E4M3)


def four_bits(stored: Tensor) -> list[list[float]]:
    """The values of bytes, the first of two in the low half."""
    codes = [[half for byte in row for half in (byte & 15, byte >> 4)] for row in stored.tolist()]
    return [[E2M1[code & 7] * (-1 if code & 8 else 1) for code in row] for row in codes]


# strategy -> what a group says of it, and rows and columns of a piece for a matrix of 5 x 7
PIECES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "tensor": ({}, (5, 7)),
    "channel": ({}, (1, 7)),
    "group": ({"group_size": 3}, (1, 3)),
    "block": ({"block_structure": [2, 4]}, (2, 4)),
}


@given(SEEDS, st.sampled_from(sorted(PIECES)), st.sampled_from(["int8", "int8 zeros", "fp8"]))
def test_factors_of_pieces(seed: int, strategy: str, kind: str) -> None:
    """The last row and column of pieces are cut off; the form that stays in memory has the same numbers."""
    said, (high, wide) = PIECES[strategy]
    rows, columns = -(-5 // high), -(-7 // wide)
    stored = random_bytes(seed, 5, 7)
    weight = finite(stored) if kind == "fp8" else stored.view(torch.int8)
    scale = (random_bytes(seed + 1, rows, columns).float() + 1).bfloat16()
    zero = random_bytes(seed + 2, rows, columns).view(torch.int8)
    shape = (1,) if strategy == "tensor" else (rows, columns)
    tensors = {"weight": weight, "weight_scale": scale.view(shape)}
    if kind == "int8 zeros":
        tensors["weight_zero_point"] = zero.view(shape)
    section = group(num_bits=8, strategy=strategy, **said)
    made = dequantised(tensors, section)
    assert torch.equal(in_memory(tensors, section), made)
    for o in range(5):
        for i in range(7):
            piece = o // high, i // wide
            offset = int(zero[piece]) if kind == "int8 zeros" else 0
            assert made[o, i] == (float(weight[o, i]) - offset) * float(scale[piece])


def test_fp8_without_a_word_on_its_factors() -> None:
    """One, as [] or [1]; of rows, as [O, 1] or [O]; of blocks of 128 x 128."""
    weight = finite(random_bytes(1, 130, 200))
    rows = torch.arange(1, 131).float()
    blocks = torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    for scale, factors in {
        torch.tensor(3.0): torch.full((130, 200), 3.0),
        torch.tensor([3.0]): torch.full((130, 200), 3.0),
        rows: rows[:, None].expand(130, 200),
        rows[:, None]: rows[:, None].expand(130, 200),
        blocks: blocks.repeat_interleave(128, 0).repeat_interleave(128, 1)[:130, :200],
    }.items():
        assert torch.equal(dequantised({"weight": weight, "weight_scale": scale}, {}), weight.float() * factors)


@given(SEEDS, st.booleans())
def test_nvfp4(seed: int, divides: bool) -> None:
    """compressed-tensors divides by the factor of all, ModelOpt multiplies."""
    stored, scale, whole = random_bytes(seed, 3, 16), finite(random_bytes(seed + 1, 3, 2) & 127), torch.tensor(24.0)
    parts = {"weight_packed": stored, "weight_scale": scale, "weight_global_scale": whole.view(1)}
    if not divides:
        parts = {"weight": stored, "weight_scale": scale, "weight_scale_2": whole}
    made, values = dequantised(parts, {}), torch.tensor(four_bits(stored))
    factor = scale.float() / whole if divides else scale.float() * whole
    for o in range(3):
        for i in range(32):
            assert made[o, i] == values[o, i] * factor[o, i // 16]
    last = list(parts)[-1]
    for exact in (0.25, 32.0):  # of which the inverse is not rounded
        parts[last] = torch.tensor(exact).view(parts[last].shape)
        assert torch.equal(in_memory(parts, {}), dequantised(parts, {}))


@given(SEEDS, st.booleans(), st.booleans())
def test_mx(seed: int, four: bool, as_bytes: bool) -> None:
    exponents = random_bytes(seed + 1, 2, 2) % 200 + 20
    scale = exponents if as_bytes else exponents.view(torch.float8_e8m0fnu)
    stored = random_bytes(seed, 2, 32 if four else 64)
    values = torch.tensor(four_bits(stored)) if four else finite(stored).float()
    parts = {"weight_packed": stored} if four else {"weight": finite(stored)}
    made = dequantised({**parts, "weight_scale": scale}, {})
    for o in range(2):
        for i in range(64):
            assert made[o, i] == float(values[o, i]) * 2.0 ** (int(exponents[o, i // 32]) - 127)
    assert torch.equal(in_memory({**parts, "weight_scale": scale}, {}), made)


@given(SEEDS, st.booleans(), st.booleans())
def test_factors_that_are_called_scale(seed: int, four: bool, as_bytes: bool) -> None:
    """DeepSeek-V4 has FP8 in blocks and FP4 beside each other; pairs of FP4 may count as signed."""
    stored, columns = random_bytes(seed, 130, 80), 160 if four else 80
    exponents = random_bytes(seed + 1, *((130, 5) if four else (2, 1))) % 200 + 20
    scale = exponents if as_bytes else exponents.view(torch.float8_e8m0fnu)
    values = torch.tensor(four_bits(stored)) if four else finite(stored).float()
    weight = stored.view(torch.int8) if four and not as_bytes else stored if four else finite(stored)
    made = dequantised({"weight": weight, "scale": scale}, {})
    for o, i in ((0, 0), (3, columns - 1), (127, 40), (128, 33), (129, 31), (129, columns - 1)):
        factor = int(exponents[o, i // 32] if four else exponents[o // 128, i // 128])
        assert made[o, i] == float(values[o, i]) * 2.0 ** (factor - 127)
    assert torch.equal(in_memory({"weight": weight, "scale": scale}, {}), made)


def test_the_largest_mx_factor() -> None:
    """6 times 2^125 is a number of fp32, 6 times 2^126 is none."""
    parts = {"weight_packed": torch.full((1, 16), 0x77, dtype=torch.uint8)}
    made = dequantised({**parts, "weight_scale": torch.tensor([[252]], dtype=torch.uint8)}, {})
    assert torch.equal(made, torch.full((1, 32), 6 * 2.0**125))
    with pytest.raises(ValueError, match=r"m.weight_scale has values that no factor has"):
        dequantised({**parts, "weight_scale": torch.tensor([[253]], dtype=torch.uint8)}, {})


@given(SEEDS, st.booleans())
def test_awq_in_bytes(seed: int, scaled_input: bool) -> None:
    """Two outputs in a byte, the even one in its low half, in two's complement."""
    stored, scale = random_bytes(seed, 3, 8), torch.rand(6, 2) + 0.5
    before = torch.tensor([2.0**i for i in range(8)])
    parts = {"weight": stored, "weight_scale": scale} | ({"pre_quant_scale": before} if scaled_input else {})
    made = dequantised(parts, {"group_size": 4})
    for o in range(6):
        for i in range(8):
            code = int(stored[o // 2, i]) >> 4 * (o % 2) & 15
            value = (code - 16 if code > 7 else code) * float(scale[o, i // 4])
            assert made[o, i] == pytest.approx(value * (float(before[i]) if scaled_input else 1), rel=1e-7)


WEIGHT, BYTES = torch.ones(4, 8).to(E4M3), torch.zeros(4, 16, dtype=torch.uint8)
INTS, ONES = BYTES.view(torch.int8), torch.ones(4, 2).to(E4M3)
ONE, TWO, ROWS = torch.ones(()), torch.ones(8, 2), torch.ones(4, 1)


@pytest.mark.parametrize(
    ("tensors", "section", "message"),
    [
        ({"weight": WEIGHT, "weight_scale": torch.ones(3)}, {}, r"m.weight_scale is \[3\]: \[4, 8\] values in pieces"),
        ({"weight": WEIGHT, "weight_scale": torch.ones(4, 2)}, {}, r"m.weight_scale is \[4, 2\]"),
        ({"weight": WEIGHT, "weight_scale": torch.ones(2, 1)}, {"weight_block_size": [4, 8]}, "pieces of 4 x 8"),
        ({"weight": WEIGHT, "weight_scale": torch.ones(1)}, {"weight_block_size": [4]}, "expected 2 positive numbers"),
        ({"weight": WEIGHT[None], "weight_scale": torch.ones(1)}, {}, r"m.weight is \[1, 4, 8\], FP8 is of matrices"),
        ({"weight": WEIGHT[:0], "weight_scale": torch.ones(1)}, {}, r"m.weight is \[0, 8\]"),
        ({"weight": WEIGHT, "weight_scale": torch.ones(4, 1)}, group(strategy="tensor"), "pieces of all x all"),
        ({"weight": INTS, "weight_scale": ROWS.int()}, {}, "m.weight_scale is I32"),
        ({"weight": INTS, "weight_scale": ROWS, "weight_zero_point": INTS[:, :2]}, {}, "m.weight_zero_point is"),
        ({"weight": INTS, "weight_scale": ROWS}, group(num_bits=8, symmetric=False), "m.weight_zero_point is missing"),
        ({"weight": BYTES, "weight_scale": ONES[:, :1], "weight_scale_2": ONE}, {}, r"4, 1\], NVFP4 makes it \[4, 2\]"),
        ({"weight": BYTES, "scale": BYTES[:, :2]}, {}, r"m.scale is \[4, 2\], MXFP4 of \[4, 32\] makes it \[4, 1\]"),
        ({"weight": BYTES[:, :8], "scale": BYTES[:, :1]}, {}, "rows of 16 values: no whole blocks of 32"),
        ({"weight": BYTES, "weight_scale": ONES, "weight_scale_2": torch.ones(3)}, {}, r"m.weight_scale_2 is \[3\]"),
        ({"weight": BYTES, "weight_scale": ONES, "weight_scale_2": 0 * ONE}, {}, "_2 is 0.0, which is no factor"),
        ({"weight_packed": BYTES, "weight_scale": BYTES[:, :3]}, {}, r"\[4, 3\], MXFP4 makes it \[4, 1\]"),
        ({"weight_packed": BYTES[:, :8], "weight_scale": BYTES[:, :1]}, {}, "rows of 16 values: no whole blocks of 32"),
        ({"weight": BYTES, "weight_scale": torch.ones(8, 3)}, {"group_size": 8}, r"m.weight_scale is \[8, 3\]"),
        ({"weight": BYTES, "weight_scale": TWO, "weight_scale_2": ONE}, {}, "W4A8_AWQ is not read"),
        ({"weight": BYTES, "weight_scale": TWO, "pre_quant_scale": TWO[:, 0]}, {}, r"m.pre_quant_scale is \[8\]"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_what_does_not_fit_is_named(tensors: dict[str, Tensor], section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dequantised(tensors, section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"format": "marlin-24"}, "'marlin-24' are not read"),
        ({"config_groups": {"group_0": {"format": "mxfp6-pack-quantized"}}}, "'mxfp6-pack-quantized' are not read"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "'sparse-24-bitmask' are not read"),
        ({"sparsity_config": {"format": "sparse-some"}}, "sparsity_config says 'sparse-some'"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "transform_config rotates"),
    ],
    ids=str,
)
def test_layouts_and_transforms_that_are_not_read(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        formats.gathered({}, section)


def test_sections_that_say_nothing_of_the_kind() -> None:
    assert formats.gathered({}, {"sparsity_config": {"format": "dense"}, "transform_config": {}}) == {}
    assert formats.gathered({}, {"sparsity_config": {}, "config_groups": {"a": None}}) == {}


def test_plain_tensors_and_those_of_other_schemes_are_left_alone() -> None:
    """What this project writes, and a factor of a matrix that is not quantised."""
    tensors = {
        "b.weight": torch.ones(4, 8).to(torch.int8),
        "b.weight_scale": torch.ones(4),
        "c.weight": torch.ones(4, 8),
        "c.weight_scale": torch.ones(1),
        "d.weight": BYTES,
        "d.weight_scale": torch.ones(4, 1, dtype=torch.int8),
    }
    assert found(tensors) == {}


NAMES = {
    "a.weight": ["a.weight_packed", "a.weight_scale", "a.weight_shape", "a.weight_zero_point", "a.weight_g_idx"],
    "b.weight": ["b.weight_packed", "b.weight_scale", "b.weight_global_scale", "b.input_global_scale"],
    "c.weight": ["c.weight", "c.weight_scale", "c.input_scale", "c.input_zero_point"],
    "d.weight": ["d.weight", "d.weight_scale", "d.input_scale_ub"],
    "e.weight": ["e.weight", "e.weight_scale", "e.weight_scale_2", "e.input_scale"],
    "f.weight": ["f.weight", "f.weight_scale", "f.pre_quant_scale"],
    "g.weight": ["g.weight"],
    "g.bias": ["g.bias"],
}


def test_by_names_alone() -> None:
    """As an index has them: matrices by their plain names, and no more of what goes with them."""
    names = [name for some in NAMES.values() for name in some]
    assert sorted(formats.plain([*names, "attn.k_scale", "v_proj.v_scale"])) == sorted(NAMES)


def test_by_names_alone_what_lacks_a_part_stays_as_it_is() -> None:
    names = ["a.weight_packed", "a.weight_shape", "b.weight_scale", "c.input_scale", "c.weight", "d.k_scale"]
    assert sorted(formats.plain(names)) == names
