"""Weight files that change while they are read: what was checked, or one ValueError. Headers by the library's rules."""

from __future__ import annotations

import json
import os
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save_file

from minillm.weights import checkpoint, source
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.source import DTYPES, Source
from minillm.weights.tensorfile import read_header


def saved(folder: Path, value: float, suffix: str) -> Path:
    path, named = folder / f"x.{suffix}", {"a": torch.full((50, 3), value), "b": torch.full((4, 5), value).t()}
    if suffix == "bin":
        torch.save(named, path)
    else:
        save_file({name: each.contiguous() for name, each in named.items()}, path)
    os.utime(path, ns=(0, int(value) * 10**9))
    return path


def all_ones(held: Checkpoint) -> bool:
    """Whether every value is 1, which is what was checked."""
    read = [stored.values() for _, stored in held.read(lambda name: True, lambda nbytes: None)]
    return all(bool((each == 1).all()) for each in read) and len(read) == 2


@pytest.fixture(params=["safetensors", "bin"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name = "model.safetensors" if request.param == "safetensors" else "pytorch_model.bin"
    saved(tmp_path, 1, request.param).rename(tmp_path / name)
    return tmp_path


def weights(folder: Path) -> Path:
    return next(folder.iterdir())


def test_another_file_of_that_name(folder: Path) -> None:
    held = Checkpoint(folder)
    saved(folder.parent, 2, weights(folder).suffix[1:]).replace(weights(folder))
    assert all_ones(held)


def test_other_content(folder: Path) -> None:
    held = Checkpoint(folder)
    other = saved(folder.parent, 2, weights(folder).suffix[1:])
    weights(folder).write_bytes(other.read_bytes())
    os.utime(weights(folder), ns=(0, 5))
    with pytest.raises(ValueError, match=r"changed while it was read|damaged"):
        all_ones(held)


def test_a_file_that_is_cut_short(folder: Path) -> None:
    held = Checkpoint(folder)
    os.truncate(weights(folder), 300)
    with pytest.raises(ValueError, match=r"ends too early|changed while it was read"):
        all_ones(held)


def test_files_that_are_opened_for_each_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_OPEN", 0)
    held = Checkpoint(folder)
    assert all_ones(held)
    saved(folder.parent, 2, weights(folder).suffix[1:]).replace(weights(folder))
    with pytest.raises(ValueError, match="changed while it was read"):
        all_ones(held)


def test_a_system_that_reads_only_from_where_it_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv", raising=False)
    monkeypatch.setattr(source, "CHUNK_BYTES", 32)
    assert all_ones(Checkpoint(folder))


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    located = {f"t{i}": f"model-{i}.safetensors" for i in range(300)}
    for name, file in located.items():
        save_file({name: torch.ones(2)}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": located}))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (250, before[1]))
    try:
        assert sum(1 for _ in Checkpoint(tmp_path).read(lambda name: True, lambda nbytes: None)) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_descriptors_are_given_back(folder: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/dev/fd"))

    before = opened()
    held = Checkpoint(folder)
    assert opened() == before + 1
    del held
    assert opened() == before


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"a folder|a pipe"):
        Checkpoint(tmp_path)
    with pytest.raises((ValueError, OSError), match=r"a folder|a pipe|directory"):
        Source(tmp_path / "model.safetensors")


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TEXT = json.dumps({"__metadata__": {"format": "pt"}, "a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 16]}})


def written(folder: Path, text: bytes, size: int = 16) -> Path:
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return folder / "x.safetensors"


@pytest.mark.parametrize(
    "text",
    [
        TEXT.encode("utf-16"), b"\xef\xbb\xbf" + TEXT.encode(), TEXT.encode("utf-32"),
        TEXT.replace('"shape"', '"dtype": "F32", "shape"', 1).encode(), TEXT.replace('"b"', '"a"').encode(),
        TEXT.replace('{"format": "pt"}', "[]").encode(), TEXT.replace('"pt"', "Infinity").encode(),
        TEXT.replace('"pt"', "NaN").encode(), TEXT.replace('"pt"', "1").encode(), TEXT.replace("[0,", "[-0,").encode(),
        TEXT.replace("[0, 8]", '{"0": 8}').encode(), TEXT.replace('"F32"', '"f32"', 1).encode(), b"[" * 90_000,
    ],
)  # fmt: skip
def test_headers_that_the_library_refuses(text: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SafetensorError):
        deserialize(path.read_bytes())
    with pytest.raises(ValueError, match="damaged or not safetensors") as caught:
        read_header(Source(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [" " + TEXT, TEXT.replace('"shape"', '"more": 1, "shape"', 1)], ids=["blank", "key"])
def test_headers_that_not_every_version_takes(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"begins with no|nothing else"):
        read_header(Source(written(tmp_path, text.encode())))


def test_a_header_of_too_many_values(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"a": [' + b"[]," * 3_000_000 + b"[]]}")
    with pytest.raises(ValueError, match="values, more than"):
        read_header(Source(path))


TOKENS = [*'{}[]",:', " ", "\n", "0", "8", "-0", "1e0", "null", '"a"', '"shape"', '"F32"', '"F4"', "\ufeff", "\\ud800"]
PLACE = st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(TOKENS), st.integers(0, 4))


@settings(max_examples=400, deadline=None)
@given(st.lists(PLACE, min_size=1, max_size=2), st.sampled_from((8, 16, 24)))
def test_what_we_take_the_library_takes_too(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[float, str, int]], size: int
) -> None:
    text = TEXT
    for share, token, instead in places:
        at = int(share * len(text))
        text = text[:at] + token + text[at + instead :]
    path = written(tmp_path_factory.getbasetemp(), text.encode("utf-8", "surrogatepass"), size)
    try:
        ours = read_header(Source(path))
    except ValueError:
        return
    base = path.stat().st_size - size
    theirs = {name: (each["dtype"], each["shape"], each["data"]) for name, each in deserialize(path.read_bytes())}
    data = path.read_bytes()
    found = {n: (e.word, list(e.shape), data[e.start : e.start + e.nbytes]) for n, e in ours.items()}
    assert found == {n: (dtype, shape, bytes(values)) for n, (dtype, shape, values) in theirs.items()}
    assert all(each.start >= base and each.word in DTYPES | {"F4": None} for each in ours.values())


def test_an_index_with_a_name_twice(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors")
    one = '"a": "m.safetensors"'
    for text in (f'{{"weight_map": {{{one}, {one}}}}}', f'{{"weight_map": {{}}, "weight_map": {{{one}}}}}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match=r"not an index: .* twice"):
            Checkpoint(tmp_path)
