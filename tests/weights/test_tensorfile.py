"""Safetensors as we read and write them, against the published library; and parameters that stay in their file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from minillm.weights import source
from minillm.weights.source import NAMES, Source
from minillm.weights.tensorfile import Writer, read_header

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.float8_e4m3fn]


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bytes as values of a type."""
    generator, count = torch.Generator().manual_seed(seed), torch.empty(shape, dtype=dtype, device="meta").nbytes
    return torch.randint(256, (count,), generator=generator, dtype=torch.uint8).view(dtype).view(shape)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype and a.shape == b.shape and a.flatten().view(torch.uint8).equal(b.flatten().view(torch.uint8))
    )


SHAPES = st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple)


@settings(max_examples=40)
@given(st.lists(st.tuples(SHAPES, st.sampled_from(TYPES)), min_size=1, max_size=5), st.integers(1, 40))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, kinds: list, piece: int) -> None:
    """By the library and by us; written in pieces, the last tensor first, and read in chunks by several threads."""
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    named = {f"t{i}": drawn(shape, dtype, i) for i, (shape, dtype) in enumerate(kinds)}
    with Writer(path, {name: (NAMES[each.dtype], each.shape) for name, each in named.items()}) as writer:
        for name, each in reversed(named.items()):
            for start in range(0, each.numel(), piece):
                writer.write(name, each.flatten()[start : start + piece], start)
    theirs = load_file(path)
    assert theirs.keys() == named.keys()
    before, source.CHUNK_BYTES = source.CHUNK_BYTES, 16
    try:
        for name, stored in read_header(Source(path)).items():
            assert same(theirs[name], named[name])
            assert same(stored.values().view(stored.shape), named[name])
            middle = named[name].numel() // 2
            assert same(stored.values(middle), named[name].flatten()[middle:])
    finally:
        source.CHUNK_BYTES = before


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    named = {f"t{i}": drawn((3, 5), dtype, i) for i, dtype in enumerate(TYPES)}
    save_file(named, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(Source(tmp_path / "x.safetensors"))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert list(found) == list(file.offset_keys())
    assert all(same(found[n].values().view(3, 5), each) for n, each in named.items())


def test_a_file_that_fails_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"before")
    with pytest.raises(RuntimeError, match="stop"), Writer(tmp_path / "x.safetensors", {"a": ("F32", (2,))}):
        raise RuntimeError("stop")
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == b"before"


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": {"a": 1}, "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]},
        {"shape": [1], "data_offsets": [0, 4]},
        [1, 2],
        None,
    ],
)
@pytest.mark.parametrize("wrap", [lambda entry: {"a": entry}, lambda entry: [entry]], ids=["object", "list"])
def test_a_header_that_is_none(entry: object, wrap: object, tmp_path: Path) -> None:
    text = json.dumps(wrap(entry)).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    with pytest.raises(ValueError, match=r"x.safetensors: damaged or not safetensors") as caught:
        read_header(Source(tmp_path / "x.safetensors"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [[2**62, 2**62, 0], [2**32, 2**32, 0, 1]])
def test_more_values_than_can_be_counted(shape: list[int], tmp_path: Path) -> None:
    """Of a tensor that has none: the library multiplies from the left."""
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(SafetensorError):
        safe_open(tmp_path / "x.safetensors", "pt")
    with pytest.raises(ValueError, match="more values than can be"):
        read_header(Source(tmp_path / "x.safetensors"))
