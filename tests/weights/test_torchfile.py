"""`.bin` files as we read them, without unpickling, against `torch.load`: the same bits, or a ValueError."""

from __future__ import annotations

import collections
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minillm.weights import source
from minillm.weights.pytorch import archive, torchfile
from minillm.weights.pytorch.pickled import NAMED
from minillm.weights.pytorch.torchfile import read_header
from minillm.weights.source import Source
from tests.weights.test_tensorfile import drawn, same

OLD = {"_use_new_zipfile_serialization": False}
TYPES = sorted({dtype for name, dtype in NAMED.items() if name.startswith("torch ")}, key=str)


def ours(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, read both ways."""
    found = {}
    for name, stored in read_header(Source(path)).items():
        found[name] = stored.values().view(stored.shape)
        filled = torch.empty(stored.shape, dtype=stored.dtype)
        stored.fresh().fill(filled)
        assert same(filled, found[name])
    return found


def theirs(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, each in expected.items():
        assert same(found[name], each.detach().contiguous()), name


def same_or_refused(path: Path) -> None:
    try:
        found = ours(path)
    except ValueError:
        return
    agree(found, theirs(path))


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(3)


def views() -> dict[str, Tensor]:
    base = torch.arange(48.0).view(6, 8)
    return {"whole": base, "turned": base.t(), "part": base[1:3, 2:5], "row": base[2], "other": torch.zeros(3)[1:]}


MADE: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: {"a": torch.ones(2, 3), "b": torch.arange(4)},
    "ordered": lambda: collections.OrderedDict(a=torch.ones(2, 3)),
    "module": lambda: Module().state_dict(),
    "parameters": lambda: dict(Module().named_parameters()),
    "views": views,
    "tied": lambda: dict.fromkeys(("a", "b"), torch.ones(3)),
    "types": lambda: {str(dtype): drawn((2, 3), dtype, 1) for dtype in TYPES},
    "empty": lambda: {"none": torch.empty(0), "flat": torch.empty(3, 0, 2), "one": torch.tensor(3.0)},
    "many": lambda: {f"layers.{i}.weight": torch.full((i % 7,), i) for i in range(2000)},
    "nothing": dict,
}  # fmt: skip


@pytest.mark.parametrize(
    "how", [{}, {"_use_new_zipfile_serialization": False}, *({"pickle_protocol": p} for p in (3, 4, 5))]
)
@pytest.mark.parametrize("kind", MADE)
def test_what_torch_saves(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    named, path = MADE[kind](), tmp_path / "x.bin"
    torch.save(named, path, **how)
    agree(ours(path), named)
    if how.get("pickle_protocol", 2) < 4 and (kind, how) != ("types", OLD):  # which torch reads by unpickling only
        agree(ours(path), theirs(path))


def test_a_parameter_with_attributes(tmp_path: Path) -> None:
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(3))
    tensor.note = parameter.note = "x"
    torch.save({"a": tensor, "b": parameter}, tmp_path / "x.bin")
    agree(ours(tmp_path / "x.bin"), theirs(tmp_path / "x.bin"))


def test_a_storage_of_several_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose checksum is put together from those of the pieces."""
    monkeypatch.setattr(source, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(torchfile, "CHUNK_BYTES", 1000)
    base = torch.randn(80, 60)
    torch.save({"a": base, "b": torch.randn(1000), "c": torch.randn(500, 3)[2:]}, tmp_path / "x.bin")
    agree(ours(tmp_path / "x.bin"), theirs(tmp_path / "x.bin"))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_of_pieces_are_joined(a: bytes, b: bytes) -> None:
    assert torchfile._joined((len(a), zlib.crc32(a)), (len(b), zlib.crc32(b))) == (len(a + b), zlib.crc32(a + b))


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def flipped(path: Path, name: str) -> None:
    """One bit of a record is another one."""
    data, content = bytearray(path.read_bytes()), records(path)[name]
    data[data.index(content)] ^= 1
    path.write_bytes(data)


def again(path: Path, **changes: bytes | None) -> None:
    """The archive with other records, by the last part of their names; None leaves one out."""
    held = {n: changes.get(n.rpartition("/")[2].replace(".", "_"), content) for n, content in records(path).items()}
    rewritten(path, {name: content for name, content in held.items() if content is not None})


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "deflated": (lambda path: rewritten(path, records(path), zipfile.ZIP_DEFLATED), "compressed"),
    "short": (lambda path: again(path, **{"0": b"1234"}), "has 4 bytes, not 4,000"),
    "long": (lambda path: again(path, **{"0": b"1" * 4004}), "has 4,004 bytes, not 4,000"),
    "absent": (lambda path: again(path, **{"0": None}), "is not there"),
    "no pickle": (lambda path: again(path, data_pkl=None), "no data.pkl"),
    "endless": (lambda path: again(path, data_pkl=b"\x80\x02" + b"N" * 32_000_000), "32,000,002 bytes, the limit"),
    "big": (lambda path: again(path, byteorder=b"big"), "byte order"),
    "alignment": (lambda path: again(path, _storage_alignment=b"x"), "alignment"),
    "checksum": (lambda path: flipped(path, "x/data/0"), "checksum"),
    "pickle": (lambda path: flipped(path, "x/data.pkl"), "checksum"),
    "what is of no use": (lambda path: flipped(path, "x/.data/serialization_id"), "checksum"),
    "behind": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "something follows"),
    "before": (lambda path: path.write_bytes(b"PK\x03\x04" + path.read_bytes()), "archive"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "something follows"),
    "two folders": (lambda path: rewritten(path, {**records(path), "y/data/0": b""}), "more than one folder"),
    "script": (lambda path: rewritten(path, {**records(path), "x/constants.pkl": b""}), "TorchScript"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_an_archive_that_is_not_as_torch_writes_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.randn(1000), "b": torch.ones(3)}, path)
    change, message = ODD[kind]
    change(path)
    with pytest.raises(ValueError, match=message) as caught:
        ours(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(2)}, path)
    held = records(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [*held.items(), ("x/data/0", struct.pack("2f", 5, 6))]:
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="'x/data/0' twice"):
        ours(path)


@pytest.mark.parametrize("field", range(30))
def test_a_local_header_that_disagrees(field: int, tmp_path: Path) -> None:
    """Each byte of it before the times, and the lengths: read all the same only where it means nothing."""
    path = tmp_path / "x.bin"
    named = {"a": torch.randn(100)}
    torch.save(named, path)
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("x/data/0").header_offset
    data = bytearray(path.read_bytes())
    data[at + field] ^= 0x55
    path.write_bytes(data)
    if field in (4, 5, *range(10, 14)):  # versions and times
        agree(ours(path), named)
    else:
        with pytest.raises(ValueError, match=r"archive|checksum"):
            ours(path)


def test_without_checksums(tmp_path: Path) -> None:
    """A setting of torch's: there is nothing to compare then."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(views(), tmp_path / "x.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    agree(ours(tmp_path / "x.bin"), views())


def test_an_archive_that_was_packed_again(tmp_path: Path) -> None:
    torch.save(views(), tmp_path / "x.bin")
    rewritten(tmp_path / "x.bin", records(tmp_path / "x.bin"))
    agree(ours(tmp_path / "x.bin"), theirs(tmp_path / "x.bin"))


def test_an_archive_of_very_many_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({str(at): torch.ones(1) for at in range(30)}, tmp_path / "x.bin")
    monkeypatch.setattr(archive, "MAX_RECORDS", 20)
    with pytest.raises(ValueError, match=r"x.bin: .*records, more than the 20 allowed"):
        torchfile.read_header(source.Source(tmp_path / "x.bin"))
