"""Tokenizers that run in a process of their own: what they give is what they would give here, within limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.hub import DEMO
from minillm.text import jsonbackend, program
from minillm.text.jsonbackend import JsonBackend
from minillm.text.tokenizer import TextStream, Tokenizer
from tests.helpers.programs import LETTERS, SLOW, backend, split, written


@settings(max_examples=60, deadline=None)
@given(st.text("ab <s>é狐\n0123", max_size=40))
def test_elsewhere_is_as_here(text: str) -> None:
    """The same file, once with a pattern that nobody knows and that never matters."""
    here, there = BOTH
    assert there.encode(text) == (ids := here.encode(text))
    assert there.decode(ids, skip_special=False) == here.decode(ids, skip_special=False)
    assert [there.backend.name_of(i) for i in ids] == [here.backend.name_of(i) for i in ids]
    stream = TextStream(there)
    assert "".join(map(stream.push, ids)) + stream.finish() == here.decode(ids).rstrip("\ufffd")


@pytest.fixture(scope="module", autouse=True)
def _both(tmp_path_factory: pytest.TempPathFactory) -> None:
    global BOTH
    folder = tmp_path_factory.mktemp("elsewhere")
    content = json.loads((DEMO / "tokenizer.json").read_text())
    steps = [split("never|nowhere"), content["pre_tokenizer"]]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    BOTH = Tokenizer(DEMO), Tokenizer(folder)
    assert BOTH[1].backend.unusual is not None


BOTH: tuple[Tokenizer, Tokenizer]


def test_what_is_slow_elsewhere_is_not_so_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that each call puts four seconds forward: the third has less than it takes, and then all begins anew."""
    clock, given = [0.0], []

    class Slow:
        def ask(self, request: tuple, seconds: float, more: int) -> str:
            given.append(seconds)
            clock[0] += 4
            if seconds < 4:
                raise ValueError("it took more")
            return ""

    monkeypatch.setattr(jsonbackend.time, "monotonic", lambda: clock[0])
    elsewhere = jsonbackend._Elsewhere.__new__(jsonbackend._Elsewhere)
    elsewhere.child, elsewhere.seconds = Slow(), jsonbackend.SECONDS
    for _ in range(2):
        elsewhere.decode([1], True)
    with pytest.raises(ValueError, match="it took more"):
        elsewhere.decode([1], True)
    elsewhere.decode([1], True)
    assert [round(each) for each in given] == [10, 6, 2, 10]


def test_ids_given_twice_are_named(tmp_path: Path) -> None:
    made = backend(tmp_path, model={"vocab": {**LETTERS, "zz": 5}})
    assert made.remarks == ["tokenizer.json gives ids to several tokens: 5 ['d', 'zz']"]


def test_added_tokens_that_the_library_renumbers_are_named(tmp_path: Path) -> None:
    token = {"content": "<x]>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    made = backend(tmp_path, added_tokens=[{**token, "id": 77, "special": True}])
    assert made.remarks == ["tokenizer.json states other ids of added tokens than it gives: '<x]>' (77, here 30)"]
    assert backend(tmp_path, added_tokens=[{**token, "id": 30, "special": True}]).remarks == []


@pytest.mark.parametrize("ids", [[2**32], [-1], [2**64], ["x"]])
def test_ids_that_are_none(ids: list, tmp_path: Path) -> None:
    for made in (backend(tmp_path), backend(tmp_path, pre_tokenizer=split(SLOW))):
        with pytest.raises(ValueError, match=r"cannot decode these ids"):
            made.decode(ids, True)


def test_a_run_of_blanks_that_no_pattern_survives(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="blanks in a row"):
        Tokenizer(DEMO).encode("a" + " " * 3_000_000)
    assert capfd.readouterr().err == ""


def test_a_pattern_that_is_slow_on_blanks_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    r"""DeepSeek-V2 splits at \s+$: at each blank of a run it looks for the end of the run."""
    made = backend(tmp_path, pre_tokenizer=split(r"\s+$"))
    assert made.unusual is None
    made.encode("a" + " " * 10_000 + "a", special=False)
    with pytest.raises(ValueError, match="over 16,384 blanks in a row"):
        made.encode("a" + " " * 40_000 + "a", special=False)


def test_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = Path(f"{tmp_path}/w\udcff")
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    assert Tokenizer(folder).encode("fox") == Tokenizer(DEMO).encode("fox")


def test_the_file_that_is_judged_is_the_file_that_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one in its place meanwhile is not read."""
    path = written(tmp_path) / "tokenizer.json"
    judge = program.unusual

    def swapped(data: bytes, beside: list) -> str | None:
        written(tmp_path, pre_tokenizer=split(SLOW))
        return judge(data, beside)

    monkeypatch.setattr(program, "unusual", swapped)
    made = JsonBackend(path, [])
    assert isinstance(made.encoding.tokenizer, tokenizers.Tokenizer)
    assert made.encoding.tokenizer.pre_tokenizer is None
