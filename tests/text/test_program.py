"""tokenizer.json as a program: published ones run here as ever, others under limits, and nothing ends the process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.hub import DEMO
from minillm.text import program
from minillm.text.jsonbackend import JsonBackend
from minillm.text.tokenizer import TextStream, Tokenizer
from tests.conftest import SHARED, shared

LETTERS = {each: i for i, each in enumerate(["<unk>", "<s>", *"abcdefghijklmnopqrstuvwxyz ▁"])}


def written(folder: Path, **parts: Any) -> Path:
    """A folder with a tokenizer.json of single letters and these parts."""
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": LETTERS, "merges": [], **parts.pop("model", {})}
    content = {"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"}, "model": model, **parts}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def backend(folder: Path, **parts: Any) -> JsonBackend:
    return JsonBackend(written(folder, **parts) / "tokenizer.json", [])


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replace(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def around(*names: str) -> dict[str, Any]:
    """A post-processor: "A" is the text."""
    items = [
        {"Sequence": {"id": "A", "type_id": 0}} if each == "A" else {"SpecialToken": {"id": each, "type_id": 0}}
        for each in names
    ]
    table = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    return {"type": "TemplateProcessing", "single": items, "pair": items, "special_tokens": table}


REAL = sorted(path.parent for path in SHARED.glob("*/*/tokenizer.json") if "TinyLlama" not in str(path))


@pytest.mark.parametrize("folder", [DEMO, *REAL], ids=lambda folder: folder.name)
def test_published_tokenizers_run_here(folder: Path) -> None:
    assert JsonBackend(folder / "tokenizer.json", []).unusual is None


def test_the_given_material_has_tokenizers() -> None:
    shared("real-configs")
    assert len(REAL) > 10


KNOWN = [
    {"pre_tokenizer": split(r"\p{N}{1,3}")},
    {"pre_tokenizer": split("[一-龥぀-ゟ゠-ヿ]+")},
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]}},
    {"decoder": {"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]}},
    {"post_processor": around("<s>", "A")},
    {"model": {"type": "BPE", "vocab": {**LETTERS, "Regex": 30, "precompiled_charsmap": 31}}},
]
SLOW = "(x+x+)+y"
UNUSUAL = [
    {"pre_tokenizer": split(SLOW)},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": SLOW}, "content": ""}},
    {"decoder": {"type": "Replace", "pattern": {"Regex": SLOW}, "content": ""}},
    {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "aa")] * 40}},
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 65}},
    {"normalizer": replace("a", "a" * 65)},
    {"normalizer": replace("", "a")},
    {"normalizer": replace("a", "")},
    {"normalizer": {"type": "Strip", "strip_left": False, "strip_right": True}},
    {"decoder": {"type": "Sequence", "decoders": [replace("a", "aa")] * 40}},
    {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 3}},
    {"post_processor": around("<s>", *["A"] * 2)},
    {"post_processor": around("A", "<nothing>")},
    {"post_processor": around(*["<s>"] * 65, "A")},
    {"model": {"type": "BPE", "dropout": 0.5}},
    {"model": {"type": "BPE", "continuing_subword_prefix": "é"}},
    {"model": {"type": "BPE", "vocab": {**LETTERS, "q" * 5000: 30}}},
    {"model": {"type": "BPE", "vocab": {**LETTERS, '"' * 5000: 30}}},
    {"model": {"type": "WordPiece", "vocab": LETTERS, "max_input_chars_per_word": 10**6}},
    {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}},
    {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e308], ["b", -1e308]]}},
]


@pytest.mark.parametrize("parts", KNOWN, ids=range(len(KNOWN)))
def test_known_parts_run_here(parts: dict, tmp_path: Path) -> None:
    assert backend(tmp_path, **parts).unusual is None


@pytest.mark.parametrize("parts", UNUSUAL, ids=range(len(UNUSUAL)))
def test_unusual_parts_run_elsewhere(parts: dict, tmp_path: Path) -> None:
    """And are no more than an error that names the file, whatever the library makes of them."""
    said: list[str] = []

    def tried(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except ValueError as error:
            said.append(str(error))

    if made := tried(lambda: backend(tmp_path, **parts)):
        assert made.unusual is not None
        for text in ("", "x" * 40, "a b c", "éé "):
            tried(made.encode, text, True)
        tried(made.decode, [2, 3, 4], True)
    assert all(each.startswith(str(tmp_path)) and len(each) < 1000 for each in said)


@pytest.mark.parametrize("name", ["Regex", "precompiled_charsmap", "continuing_subword_prefix"])
def test_keys_cannot_hide_behind_escapes(name: str) -> None:
    plain = json.dumps({name: "(x+x+)+y"}).encode()
    assert program.unusual_bytes(plain) is not None
    for at in range(len(name)):
        spelled = f"{name[:at]}\\u{ord(name[at]):04x}{name[at + 1 :]}"
        assert program.unusual_bytes(plain.replace(name.encode(), spelled.encode())) is not None
    # A backslash, and then letters that are no escape: part of many a vocabulary of code.
    assert program.unusual_bytes(b'{"\\\\u0052egex": 5, "\\u0120x": 6}') is None


@pytest.mark.parametrize(
    "charsmap", ["AAAA", "AAAAgA==", None, "/////8XXFIT4z5v0t29HkEcwgEueMiWp8TO13qFo9OKFHw==", "é"]
)
def test_maps_of_characters(charsmap: str | None, tmp_path: Path) -> None:
    """Which the library reads without a look at their sizes: the last but one says that it has 4 GB."""
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer"):
        backend(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap})


def test_a_text_that_makes_a_pattern_slow_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = backend(tmp_path, pre_tokenizer=split(SLOW))
    with pytest.raises(ValueError, match=r"cannot encode this text.*its pattern '\(x\+x\+\)\+y'"):
        made.encode("x" * 40, True)
    assert made.encode("abc", True) == [2, 3, 4]
    assert capfd.readouterr().err == ""  # where the library's panics go


def test_doubling_is_an_error_and_the_next_text_is_encoded(tmp_path: Path) -> None:
    made = backend(tmp_path, normalizer={"type": "Sequence", "normalizers": [replace("a", "aa")] * 40})
    with pytest.raises(ValueError, match=r"MB of memory.*times as long"):
        made.encode("a", True)
    assert made.encode("b", True) == [3]


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


def test_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = Path(f"{tmp_path}/w\udcff")
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    assert Tokenizer(folder).encode("fox") == Tokenizer(DEMO).encode("fox")


def test_the_file_that_is_judged_is_the_file_that_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one in its place meanwhile is not read."""
    path = written(tmp_path) / "tokenizer.json"
    judge = program.unusual_bytes

    def swapped(data: bytes) -> str | None:
        written(tmp_path, pre_tokenizer=split(SLOW))
        return judge(data)

    monkeypatch.setattr(program, "unusual_bytes", swapped)
    made = JsonBackend(path, [])
    assert isinstance(made.encoding.tokenizer, tokenizers.Tokenizer)
    assert made.encoding.tokenizer.pre_tokenizer is None
