"""Pickles of other things than tensors, and `.bin` files with changed bytes: what `torch.load` reads, or an error."""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.weights.pytorch import pickled
from minillm.weights.pytorch.torchfile import read_header
from minillm.weights.source import Source
from tests.weights.test_tensorfile import drawn
from tests.weights.test_torchfile import Module, again, records, same_or_refused, views

BOMBS = {
    "tuple": b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "bytearray": b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\xff\xff\xff\xff\x00\x85R.",
    "call": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "steps": b"\x80\x02" + b"]0" * 5_000_000 + b".",
    "nested": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
    "marked": b"\x80\x02}(q\x00h\x00\x86s.",
    "state": b"\x80\x02}}b.",
    "nothing": b".",
    "empty": b"",
    "long": b"\x80\x02\x8b\xff\xff\xff\x7f",
    "digits": b"L" + b"9" * 1_000_000 + b"L\n.",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_of_something_else(kind: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({}, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        again(path, data_pkl=BOMBS[kind])
    else:
        path.write_bytes(path.read_bytes().replace(b"\x80\x02}q\x00.\x80\x02]", BOMBS[kind] + b"\x80\x02]"))
    with pytest.raises(ValueError, match="not a plain file of tensors") as caught:
        read_header(Source(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "MAX_STEPS", 100)
    with pytest.raises(ValueError, match="more than 100 steps"):
        pickled.Reader().read(io.BytesIO(b"\x80\x02(" + b"N" * 200 + b"t."))


def saved(zipped: bool) -> bytes:
    file = io.BytesIO()
    named = {**Module().state_dict(), **views(), **({"f8": drawn((3,), torch.float8_e4m3fn, 1)} if zipped else {})}
    torch.save(named, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


PLACE = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.sampled_from("scid"))
PLACES = st.lists(PLACE, max_size=3, min_size=1)


def changed(data: bytes, places: list[tuple[float, int, str]]) -> bytes:
    """Bytes set, cut out, put in and copied from elsewhere."""
    made = bytearray(data)
    for share, byte, how in places:
        at = int(share * len(made))
        if how == "s":
            made[at] = byte
        elif how == "c":
            del made[at : at + 1 + byte % 4]
        elif how == "i":
            made[at:at] = bytes([byte])
        else:
            made[at : at + 8] = made[byte : byte + 8]
    return bytes(made)


@settings(max_examples=250, deadline=None)
@given(PLACES, st.booleans())
def test_a_changed_pickle_is_torchs_tensors_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[float, int, str]], zipped: bool
) -> None:
    path, data = tmp_path_factory.getbasetemp() / "changed.bin", saved(zipped)
    if zipped:
        path.write_bytes(data)
        again(path, data_pkl=changed(records(path)["archive/data.pkl"], places))
    else:
        end = data.rindex(b"e.") + 2  # of the pickles
        path.write_bytes(changed(data[:end], places) + data[end:])
    same_or_refused(path)


@settings(max_examples=150, deadline=None)
@given(PLACES)
def test_a_changed_archive_is_torchs_tensors_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[float, int, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "archive.bin"
    path.write_bytes(changed(saved(True), places))
    same_or_refused(path)


def test_nothing_is_called(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "owned"), "w")

    for content in (Evil(), {"a": Evil()}, collections.OrderedDict(a=[Evil()])):
        torch.save(content, tmp_path / "x.bin", pickle_module=pickle)
        with pytest.raises(ValueError, match="which is no part of a plain tensor"):
            read_header(Source(tmp_path / "x.bin"))
    assert not (tmp_path / "owned").exists()
