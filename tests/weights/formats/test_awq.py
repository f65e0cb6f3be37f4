"""AWQ: eight outputs in a word, in their order, and other layouts refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.weights.formats.by_hand import found, integers, matrix

PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # which output each nibble of a word is, from its low end


def words(numbers: Tensor) -> Tensor:
    made = []
    for row in numbers.tolist():
        parts = [row[first : first + 8] for first in range(0, len(row), 8)]
        made.append([sum(part[output] << (4 * nibble) for nibble, output in enumerate(PLACES)) for part in parts])
    values = torch.tensor(made, dtype=torch.int64)
    return torch.where(values >= 2**31, values - 2**32, values).to(torch.int32)


def problem(inputs: int, outputs: int, groups: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors, and the matrix that they hold."""
    q, z = integers(0, 16, (inputs, outputs), seed), integers(0, 16, (groups, outputs), seed + 1)
    scales = (integers(1, 2048, (groups, outputs), seed + 2) / 1024).half()
    tensors = {"model.m.qweight": words(q), "model.m.qzeros": words(z), "model.m.scales": scales}
    size = -(-inputs // groups)
    columns = [(q[i] - z[i // size]) * scales[i // size].float() for i in range(inputs)]
    return tensors, torch.stack(columns, 1)


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from((1, 2, 4)), st.integers(0, 99))
def test_round_trip(blocks: int, wide: int, groups: int, seed: int) -> None:
    tensors, expected = problem(8 * blocks, 8 * wide, groups, seed)
    size = -1 if groups == 1 else 8 * blocks // groups
    said = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm", "zero_point": True}
    assert torch.equal(matrix(tensors, said), expected)


def test_of_auto_round() -> None:
    tensors, expected = problem(16, 16, 2, 0)
    said = {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 8}
    assert torch.equal(matrix(tensors, said), expected)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ({"version": "gemv"}, {}, "AWQ in the layout 'gemv' is not read; use a checkpoint in the gemm layout"),
        ({"version": "GEMV_fast"}, {}, "AWQ in the layout 'gemv_fast' is not read"),
        ({"format": "marlin"}, {}, "AWQ in the layout 'marlin' is not read"),
        ({"backend": "llm-awq"}, {}, "AWQ in the layout 'llm-awq' is not read"),
        ({"bits": 8}, {}, "model.m.weight is of 4 bits, config.json says 8"),
        ({"group_size": 4}, {}, "model.m.weight has 2 groups of 16 inputs, config.json says group_size 4"),
        ({}, {"qweight": torch.ones(16, 3, dtype=torch.int32)}, r"model.m.qweight is .16, 3. with scales .2, 16."),
        ({}, {"qzeros": torch.ones(2, 1, dtype=torch.int32)}, r"model.m.qzeros is .2, 1., AWQ makes it .2, 2."),
        ({}, {"qweight": torch.ones(16, 2, dtype=torch.int64)}, "model.m.qweight is I64, AWQ makes it I32"),
        ({}, {"qzeros": None}, "model.m.qzeros is missing"),
    ],
)
def test_what_does_not_fit_is_named(section: dict[str, Any], changes: dict[str, Tensor | None], message: str) -> None:
    tensors, _ = problem(16, 16, 2, 1)
    for name, each in changes.items():
        del tensors[f"model.m.{name}"]
        if each is not None:
            tensors[f"model.m.{name}"] = each
    with pytest.raises(ValueError, match=message):
        found(tensors, section)
