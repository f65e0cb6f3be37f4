"""tokenizer.json as a program: published ones run here as ever, others under limits, and nothing ends the process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm.hub import DEMO
from minillm.text import jsonbackend, program, sections
from minillm.text.tokenizer import Tokenizer
from tests.conftest import SHARED, shared
from tests.helpers.programs import LETTERS, SLOW, added, around, backend, replace, split, written

REAL = sorted(path.parent for path in SHARED.glob("*/*/tokenizer.json") if "TinyLlama" not in str(path))


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What grows without an end soon comes to it; `guard/test_child.py` has the limit itself."""
    monkeypatch.setattr(jsonbackend, "MEMORY", 50_000_000)


@pytest.mark.parametrize("folder", [DEMO, *REAL], ids=lambda folder: folder.name)
def test_published_tokenizers_run_here(folder: Path) -> None:
    """With the tokens that the files beside them add."""
    assert Tokenizer(folder).backend.unusual is None


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
UNUSUAL = [
    {"pre_tokenizer": split(SLOW)},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": SLOW}, "content": ""}},
    {"decoder": {"type": "Replace", "pattern": {"Regex": SLOW}, "content": ""}},
    {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "aa")] * 40}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}] * 65}},
    {"normalizer": replace("a", "a" * 13)},
    {"normalizer": replace("a", "b ")},
    {"normalizer": {"type": "Prepend", "prepend": "\n"}},
    {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": split(r"\s+$")},
    {"normalizer": {"type": "StripAccents"}, "pre_tokenizer": split("[\r\n]")},
    {"normalizer": {"type": "Replace", "normalizers": [], "pattern": {"String": "a"}, "content": "a" * 99}},
    {"added_tokens": [added("a" * 60_000)], "normalizer": replace("a", "a" * 8)},
    {"added_tokens": [added(f"<{i}>") for i in range(10_001)]},
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
    {"model": {"type": "WordPiece", "vocab": LETTERS, "max_input_chars_per_word": 601}},
    {
        "model": {"type": "WordPiece", "vocab": LETTERS, "max_input_chars_per_word": 100},
        "normalizer": replace("a", "b" * 9),
    },
    {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0], ["a" * 601, -1.0]]}},
    {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 100, -1.0]]}, "normalizer": replace("a", "b" * 9)},
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
    assert program._unusual_bytes(plain) is not None
    for at in range(len(name)):
        spelled = f"{name[:at]}\\u{ord(name[at]):04x}{name[at + 1 :]}"
        assert program._unusual_bytes(plain.replace(name.encode(), spelled.encode())) is not None
    # A backslash, and then letters that are no escape: part of many a vocabulary of code.
    assert program._unusual_bytes(b'{"\\\\u0052egex": 5, "\\u0120x": 6}') is None


@pytest.mark.parametrize(
    "charsmap", ["AAAA", "AAAAgA==", None, "/////8XXFIT4z5v0t29HkEcwgEueMiWp8TO13qFo9OKFHw==", "é"]
)
def test_maps_of_characters(charsmap: str | None, tmp_path: Path) -> None:
    """Which the library reads without a look at their sizes: the last but one says that it has 4 GB."""
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer"):
        backend(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap})


DOUBLING = {"type": "Sequence", "normalizers": [replace("a", "aa")] * 32}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("place", ["tokenizer.json", "beside it", "behind the model", "twice", "spelled otherwise"])
def test_nothing_is_built_here_before_all_is_known(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building normalizes the added tokens already."""

    def built(*_: Any) -> None:
        raise AssertionError("it is built in this process")

    monkeypatch.setattr(jsonbackend, "Encoding", built)
    first = {"added_tokens": [added("aab")], "normalizer": DOUBLING}
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": LETTERS, "merges": []}
    parts = json.dumps(first)[1:-1]
    spelled = parts.replace("normalizer", r"norm\u0061lizer")
    text = {
        "tokenizer.json": f'{{{parts}, "model": {json.dumps(model)}}}',
        "beside it": json.dumps({"normalizer": DOUBLING, "model": model}),
        "behind the model": f'{{"model": {json.dumps(model)}, {parts}}}',
        "twice": f'{{"normalizer": null, {parts}, "model": {json.dumps(model)}}}',
        "spelled otherwise": f'{{{spelled}, "model": {json.dumps(model)}}}',
    }[place]
    (tmp_path / "tokenizer.json").write_text(text)
    if place == "beside it":
        token = {"30": {"content": "aab", "normalized": True}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": token}))
    with pytest.raises(ValueError, match=r"not a tokenizer the tokenizers library can read \(it took more than"):
        Tokenizer(tmp_path)


def test_parts_are_read_in_any_order_and_once() -> None:
    model = {"type": "BPE", "vocab": {"normalizer": 1, '"normalizer": {': 2}, "merges": []}
    parts = {"added_tokens": [added("x")], "normalizer": {"type": "NFC"}, "decoder": None}
    for whole in ({**parts, "model": model}, {"model": model, **parts}, {"decoder": None, "model": model, **parts}):
        for indent in (None, 1):
            assert sections.head(json.dumps(whole, indent=indent).encode()) == parts
    for text in ('{"normalizer": 1, "normalizer": 2, "model": {}}', '{"model": {}, "model": {}}', "[]", "{", '{"x" 1}'):
        assert sections.head(text.encode()) is None


def test_large_vocabularies_run_elsewhere() -> None:
    text = json.dumps({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["x" * 50, -1.0]] * 60_000}})
    assert "pieces of" in str(program.unusual(text.encode(), []))
    assert "values" in str(program.unusual(b'{"model": {"merges": [' + b"0," * 2_500_001 + b"0]}}", []))


def test_a_file_that_two_processes_would_hold_is_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonbackend, "MAX_BYTES_ELSEWHERE", 1000)
    assert backend(tmp_path).unusual is None
    written(tmp_path, normalizer=DOUBLING)
    with pytest.raises(ValueError, match=r"more than the 1,000 where its normalizer may make"):
        Tokenizer(tmp_path)


def test_a_text_that_makes_a_pattern_slow_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = backend(tmp_path, pre_tokenizer=split(SLOW))
    with pytest.raises(ValueError, match=r"cannot encode this text.*its pattern '\(x\+x\+\)\+y'"):
        made.encode("x" * 40, True)
    assert made.encode("abc", True) == [2, 3, 4]
    assert capfd.readouterr().err == ""  # where the library's panics go


@pytest.mark.usefixtures("little_memory")
def test_doubling_is_an_error_and_the_next_text_is_encoded(tmp_path: Path) -> None:
    made = backend(tmp_path, normalizer={"type": "Sequence", "normalizers": [replace("a", "aa")] * 40})
    with pytest.raises(ValueError, match=r"MB of memory.*times as long"):
        made.encode("a", True)
    assert made.encode("b", True) == [3]
