"""bitsandbytes: two values in a byte, the first in its high half, blocks that cross rows, factors quantised again."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.record_fp4 import CASES, RECORDED
from tests.weights.formats.by_hand import MATRIX, as_it_lies, found, integers, matrix

STATE = f"{MATRIX}.quant_state.bitsandbytes__nf4"


def as_text(state: dict[str, Any]) -> Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def problem(
    rows: int, columns: int, block: int, nested: int | None, storage: torch.dtype, dtype: str, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors, and the matrix that they hold: value after value, as the paper's formula says."""
    count = rows * columns
    q = integers(0, 16, (count,), seed).tolist()
    table = torch.rand(16, generator=torch.Generator().manual_seed(seed)) - 0.5
    blocks = -(-count // block)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": dtype, "shape": [rows, columns]}
    padded = q + [0] * (-count % (2 * storage.itemsize))
    stored = torch.tensor([16 * a + b for a, b in zip(padded[::2], padded[1::2], strict=True)], dtype=torch.uint8)
    tensors = {MATRIX: stored.view(storage)[:, None], f"{MATRIX}.quant_map": table}
    if nested is None:
        absmax = torch.rand(blocks, generator=torch.Generator().manual_seed(seed + 1)) + 0.5
        tensors[f"{MATRIX}.absmax"] = absmax
    else:
        small = integers(0, 256, (blocks,), seed + 1)
        outer = torch.rand(-(-blocks // nested), generator=torch.Generator().manual_seed(seed + 2)) + 0.5
        inner = torch.linspace(-1, 1, 256) ** 3
        state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": 0.0943}
        absmax = torch.stack([inner[int(small[b])] * outer[b // nested] + 0.0943 for b in range(blocks)])
        tensors[f"{MATRIX}.absmax"] = small.to(torch.uint8)
        tensors |= {f"{MATRIX}.nested_absmax": outer, f"{MATRIX}.nested_quant_map": inner}
    tensors[STATE] = as_text(state)
    values = torch.stack([table[number] * absmax[index // block] for index, number in enumerate(q)])
    return tensors, values.to(getattr(torch, dtype)).float().view(rows, columns)


@given(
    st.integers(1, 7), st.integers(1, 9), st.sampled_from((4, 8, 64)), st.sampled_from((None, 2, 256)),
    st.sampled_from((torch.uint8, torch.bfloat16, torch.float16, torch.float32)),
    st.sampled_from(("float32", "bfloat16", "float16")), st.integers(0, 99),
)  # fmt: skip
def test_round_trip(
    rows: int, columns: int, block: int, nested: int | None, storage: torch.dtype, dtype: str, seed: int
) -> None:
    """Rows of an odd number of values share bytes, and blocks of any size."""
    tensors, expected = problem(rows, columns, block, nested, storage, dtype, seed)
    assert torch.equal(matrix(tensors), expected)


@pytest.mark.parametrize("case", CASES)
def test_fp4_is_what_the_tool_makes_of_it(case: str) -> None:
    """Bit for bit what bitsandbytes 0.50.2 gave (`tests/helpers/record_fp4.py`), dequantised and as it lies in memory,
    where a block that goes on in the next row does not."""
    parts = {name.removeprefix(f"{case}/"): each for name, each in load_file(RECORDED).items()
             if name.startswith(f"{case}/")}  # fmt: skip
    expected = parts.pop("dequantised")
    assert expected.dtype == CASES[case][0]
    assert ("weight.nested_absmax" in parts) == CASES[case][1]
    tensors = {f"{MATRIX.removesuffix('weight')}{part}": each for part, each in parts.items()}
    assert torch.equal(matrix(tensors), expected.float())
    packed = found(tensors)[MATRIX]
    assert (packed.stays is None) == (case == "blocks-over-rows")
    if packed.stays:
        assert torch.equal(as_it_lies(tensors), expected.float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_type": "fp4"}, "quant_type is 'fp4', which bitsandbytes nf4 does not have"),
        ({"shape": [4, 0]}, r"shape is '\[4, 0\]'"),
        ({"shape": [8, 8]}, r"model.m.weight is .16, 1., bitsandbytes nf4 makes it .32, 1."),
        ({"shape": [2**40, 2**40]}, "bitsandbytes nf4 makes it"),
        ({"blocksize": 0}, "blocksize is '0'"),
        ({"blocksize": True}, "blocksize is 'True'"),
        ({"blocksize": 4}, r"model.m.weight.absmax is .4., bitsandbytes nf4 makes it .8."),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"nested_offset": "0.1"}, "nested_offset is '0.1'"),
        ({"nested_blocksize": 10**9}, "nested_blocksize is"),
        ({"nested_blocksize": None}, "nested_blocksize is"),
        ({"nested_blocksize": ...}, "lacks nested_blocksize or nested_offset"),
        ({"rotated": True}, "rotated is 'True'"),
    ],
)
def test_a_state_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    tensors, _ = problem(4, 8, 8, 2, torch.uint8, "bfloat16", 5)
    state = {**json.loads(bytes(tensors[STATE].tolist())), **changes}
    tensors[STATE] = as_text({key: value for key, value in state.items() if value is not ...})
    with pytest.raises(ValueError, match=message):
        found(tensors)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (STATE, torch.tensor([255, 0], dtype=torch.uint8), "is no text"),
        (STATE, torch.tensor([91, 93], dtype=torch.uint8), "expected a JSON object, found list"),
        (STATE, torch.zeros(2**16 + 1, dtype=torch.uint8), r"expected a short JSON text"),
        (STATE, torch.tensor([1.0]), f"{STATE} is F32, bitsandbytes makes it U8"),
        (f"{MATRIX}.quant_map", None, "model.m.weight.quant_map is missing"),
        (f"{MATRIX}.absmax", None, "model.m.weight.absmax is missing"),
        (f"{MATRIX}.nested_absmax", None, "model.m.weight.nested_absmax is missing"),
        (f"{MATRIX}.nested_quant_map", torch.zeros(16), r"nested_quant_map is .16., bitsandbytes nf4 makes it .256."),
        (f"{MATRIX}.absmax", torch.zeros(4), "absmax is F32, but its quant_state says that it is quantised"),
        (MATRIX, torch.zeros(16, 1, dtype=torch.int8), "model.m.weight is I8, bitsandbytes nf4 makes it U8"),
        (MATRIX, torch.zeros(32, 1, dtype=torch.uint8), r"model.m.weight is .32, 1."),
    ],
)
def test_parts_that_do_not_fit(name: str, values: Tensor | None, message: str) -> None:
    tensors, _ = problem(4, 8, 8, 2, torch.uint8, "bfloat16", 5)
    del tensors[name]
    if values is not None:
        tensors[name] = values
    with pytest.raises(ValueError, match=message):
        found(tensors)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_int8(rows: int, columns: int, seed: int) -> None:
    q = integers(-127, 128, (rows, columns), seed).to(torch.int8)
    factors = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) + 0.1
    tensors = {MATRIX: q, "model.m.SCB": factors, "model.m.weight_format": torch.tensor(0, dtype=torch.uint8)}
    assert torch.equal(matrix(tensors), torch.stack([row.float() * s / 127 for row, s in zip(q, factors, strict=True)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weight_format": torch.tensor(2, dtype=torch.uint8)},
            "weight_format is 2: a layout for GPUs, only 0",
        ),
        ({"SCB": torch.ones(3)}, r"model.m.SCB is .3., bitsandbytes int8 makes it .2."),
        ({"weight": torch.ones(2, 4)}, "model.m.weight is F32, bitsandbytes int8 makes it I8"),
    ],
)
def test_int8_that_is_none(changes: dict[str, Tensor], message: str) -> None:
    tensors = {"weight": torch.ones(2, 4, dtype=torch.int8), "SCB": torch.ones(2), **changes}
    with pytest.raises(ValueError, match=message):
        found({f"model.m.{name}": each for name, each in tensors.items()})
