"""torchao: what the header of a file says of its tensors, factors of rows, groups and blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from minillm.weights.checkpoint import Checkpoint
from tests.weights.formats.by_hand import MATRIX, as_it_lies, found, integers, matrix

KINDS = ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor")


def said(kind: str, block: list[int], dtype: str = "bfloat16", **more: Any) -> dict[str, str]:
    data = {"block_size": block, "dtype": {"_type": "torch.dtype", "_data": dtype}, **more}
    return {MATRIX: json.dumps({"_type": kind, "_data": data, "_tensor_data_names": ["qdata", "scale"]})}


def parts(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {f"model.m._weight_{name}": each for name, each in tensors.items() if each is not None}


def problem(kind: str, shape: tuple[int, int], block: tuple[int, int], seed: int) -> tuple[dict[str, Tensor], Tensor]:
    blocks = (shape[0] // block[0], shape[1] // block[1])
    scale = (integers(1, 128, blocks, seed) / 64).to(torch.bfloat16)
    q = integers(-128, 128, shape, seed + 1)
    qdata = (q / 16).to(torch.float8_e4m3fn) if kind == "Float8Tensor" else q.to(torch.int8)
    zero = None if kind == "Float8Tensor" else integers(-128, 128, blocks, seed + 2).to(torch.int8)
    expected = torch.empty(shape)
    for o in range(shape[0]):
        for i in range(shape[1]):
            at = o // block[0], i // block[1]
            value = qdata[o, i].float() - (0 if zero is None else zero[at].float())
            expected[o, i] = (value * scale[at].float()).bfloat16().float()
    return parts(qdata=qdata, scale=scale, zero_point=zero), expected


@given(
    st.sampled_from(KINDS), st.integers(1, 3), st.integers(1, 3), st.sampled_from(((1, 4), (2, 2), (1, 8))),
    st.integers(0, 99),
)  # fmt: skip
def test_round_trip(kind: str, high: int, wide: int, block: tuple[int, int], seed: int) -> None:
    tensors, expected = problem(kind, (high * block[0], wide * block[1]), block, seed)
    section = {"__metadata__": said(kind, list(block))}
    assert torch.equal(matrix(tensors, section), expected)
    packed = found(tensors, section)[MATRIX]
    assert (packed.stays is None) == (kind == "Float8Tensor" or block[0] > 1)
    if packed.stays:
        assert torch.equal(as_it_lies(tensors, section), expected)


def test_from_a_file(tmp_path: Path) -> None:
    tensors, expected = problem("Int8Tensor", (4, 8), (1, 8), 0)
    save_file(tensors, tmp_path / "model.safetensors", metadata=said("Int8Tensor", [1, 8]))
    checkpoint = Checkpoint(tmp_path)
    assert list(checkpoint.info) == [MATRIX]
    assert torch.equal(checkpoint.stored[MATRIX].values().view(4, 8), expected)


@pytest.mark.parametrize(
    ("metadata", "changes", "message"),
    [
        ({}, {}, "model.m.weight: the file's header does not say which class of torchao it is"),
        ({MATRIX: "{"}, {}, "metadata of model.m.weight: not valid JSON"),
        ({MATRIX: "[]"}, {}, "model.m.weight is a None of torchao"),
        (said("Int4TilePackedTo4dTensor", [1, 8]), {}, "model.m.weight is a Int4TilePackedTo4dTensor of torchao, read"),
        (said("Int8Tensor", [1, 0]), {}, "block_size in the file's header"),
        (said("Int8Tensor", [1, 3]), {}, r"_weight_qdata is .4, 8., which are no whole blocks of .1, 3."),
        (said("Int8Tensor", [8]), {}, r"_weight_qdata is .4, 8., which are no whole blocks of .8."),
        (said("Int8Tensor", [1, 4]), {}, r"_weight_scale is .4, 1., torchao Int8Tensor in blocks of .1, 4. makes it"),
        (said("Int8Tensor", [1, 8], "int8"), {}, "dtype in the file's header is int8, expected float32"),
        (said("Float8Tensor", [1, 8]), {}, "_weight_qdata is I8, torchao Float8Tensor makes it F8_E4M3"),
        (said("Int8Tensor", [1, 8]), {"zero_point": None}, "model.m._weight_zero_point is missing"),
        (said("Int8Tensor", [1, 8]), {"scale": None}, "model.m._weight_scale is missing"),
        (said("Int8Tensor", [1, 8]), {"zero_point": torch.zeros(4, 1)}, "_weight_zero_point is F32"),
    ],
)
def test_what_does_not_fit_is_named(metadata: dict[str, str], changes: dict[str, Tensor | None], message: str) -> None:
    tensors, _ = problem("Int8Tensor", (4, 8), (1, 8), 1)
    for name, each in changes.items():
        del tensors[f"model.m._weight_{name}"]
        tensors |= parts(**{name: each})
    with pytest.raises(ValueError, match=message):
        found(tensors, {"__metadata__": metadata})
