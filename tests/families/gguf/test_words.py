"""Tokenizers in GGUF files: back from the published vocabularies that llama.cpp tests with, and by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.families.gguf import vocabulary as gguf_vocabulary
from minillm.families.gguf import words as gguf_words
from minillm.families.gguf.splits import LLAMA3, QWEN2, SPLITS
from minillm.guard import files
from minillm.text.tokenizer import Tokenizer
from minillm.weights.gguf import reader
from tests.conftest import shared

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
# Letters, tokens of two and three of them; the last is no merge's.
BPE: dict[str, Any] = {
    "added_tokens": [{"content": "<s>", "id": 5, "special": True}, {"content": "<tool>", "id": 6, "special": False}],
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, LEVEL]},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}, "merges": [["a", "b"], "ab c"]},
}
SPM: dict[str, Any] = {
    "added_tokens": [{"content": "<unk>", "id": 0, "special": True}],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": None,
    "model": {"type": "BPE", "byte_fallback": True, "merges": [["a", "b"], ["ab", "c"], ["a", "bc"], ["b", "c"]],
              "vocab": {"<unk>": 0, "<0x41>": 1, "a": 2, "b": 3, "c": 4, "▁": 5, "ab": 6, "abc": 7, "bc": 8}},
}  # fmt: skip


def changed(words: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    made = copy.deepcopy(words)
    change(made)
    return made


def said(words: dict[str, Any], size: int = 10) -> dict[str, Any]:
    found, _ = gguf_words.vocabulary(words, size)
    return {key.removeprefix("tokenizer.ggml."): value for key, value in found.items()}


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "llama-bpe", "qwen2", "deepseek-llm"])
def test_published_vocabularies(name: str) -> None:
    """From a file to tokenizer.json and back; of scores the order counts."""
    path = shared(f"tokenizers/ggml-vocab-{name}.gguf")
    theirs = reader.read(path).metadata
    files.mount(path, gguf_vocabulary.files(theirs))
    words = json.loads(files.read_bytes(path / "tokenizer.json"))
    ours, remarks = gguf_words.vocabulary(words, len(theirs["tokenizer.ggml.tokens"]))
    assert not remarks
    for key in ("model", "pre", "tokens", "merges"):
        assert ours.get(f"tokenizer.ggml.{key}") == theirs.get(f"tokenizer.ggml.{key}"), key
    types = theirs["tokenizer.ggml.token_type"]
    unknown = types == gguf_vocabulary.UNKNOWN  # which tokenizer.json tells from others as unk_token
    assert np.array_equal(ours["tokenizer.ggml.token_type"][~unknown], types[~unknown])
    if "tokenizer.ggml.scores" in theirs:
        joined = [i for i, each in enumerate(theirs["tokenizer.ggml.tokens"]) if types[i] == 1 and len(each) > 1]
        own, known = (each["tokenizer.ggml.scores"][joined] for each in (ours, theirs))
        assert np.array_equal(np.argsort(-own, kind="stable"), np.argsort(-known, kind="stable"))


def test_bytes_joined_by_a_list() -> None:
    found = said(BPE)
    assert (found["model"], found["pre"], found["merges"]) == ("gpt2", "llama-bpe", ["a b", "ab c"])
    assert found["tokens"] == ["a", "b", "c", "ab", "abc", "<s>", "<tool>", "[PAD7]", "[PAD8]", "[PAD9]"]
    assert found["token_type"].tolist() == [1, 1, 1, 1, 1, 3, 4, 5, 5, 5]


def test_letters_joined_by_score() -> None:
    found = said(SPM)
    assert (found["model"], found["pre"]) == ("llama", "default")
    scores = dict(zip(found["tokens"], found["scores"].tolist(), strict=True))
    assert scores["ab"] > scores["abc"] > scores["bc"] > scores["a"] == scores["<unk>"]
    assert found["token_type"].tolist() == [3, 6, 1, 1, 1, 1, 1, 1, 1, 5]
    assert "add_space_prefix" not in found
    assert said(changed(SPM, lambda made: made["normalizer"]["normalizers"].pop(0)))["add_space_prefix"] is False
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    assert "add_space_prefix" not in said({**SPM, "normalizer": None, "pre_tokenizer": space})
    never = {**space, "prepend_scheme": "never"}
    assert said({**SPM, "normalizer": None, "pre_tokenizer": never})["add_space_prefix"] is False


def test_letters_joined_by_a_list() -> None:
    """Where scores cannot say the order, and nothing is put in front of a text."""
    whole = changed(SPM, lambda made: made["normalizer"]["normalizers"].pop(0))
    listed = changed(whole, lambda made: made["model"].update(merges=APART))
    found = said(listed)
    assert (found["model"], found["merges"]) == ("gemma4", ["ab c", "b c", "a bc", "a b"])
    assert "pre" not in found
    assert found["add_space_prefix"] is False
    mixed = changed(listed, lambda made: made["model"]["merges"].append(["\n", "a"]))
    _, remarks = gguf_words.vocabulary(mixed, 10)
    assert remarks == ["that 1 tokens have line ends beside letters, such as '\\na'"]
    with pytest.raises(ValueError, match="begins every text of such a vocabulary with the bos token"):
        gguf_words.roles({"bos": 5}, [], [], [], [], "gemma4")
    assert gguf_words.roles({"bos": 5}, [5], [], [], [], "gemma4")["tokenizer.ggml.add_bos_token"] is True


def splitting(*parts: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda made: made.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [*parts]})


def test_names_of_rules() -> None:
    assert said(changed(BPE, splitting({"type": "ByteLevel", "add_prefix_space": False})))["pre"] == "gpt-2"
    other = {**SPLIT, "pattern": {"Regex": QWEN2}, "behavior": "Removed", "invert": True}
    assert said(changed(BPE, splitting(other, LEVEL)))["pre"] == "qwen2"
    digits = {"type": "Digits", "individual_digits": True}
    level = {"type": "ByteLevel", "add_prefix_space": False}
    assert said(changed(BPE, splitting(digits, level)))["pre"] == "starcoder"
    assert said(changed(BPE, lambda made: made["model"].update(ignore_merges=True)))["pre"] == "llama-bpe"
    # A token that no merge makes: whether it stays whole matters.
    alone = changed(BPE, lambda made: made["model"]["vocab"].update(cb=7))
    assert said(alone)["pre"] == "dbrx"
    assert said(changed(alone, lambda made: made["model"].update(ignore_merges=True)))["pre"] == "llama-bpe"
    assert SPLITS["dbrx"] == SPLITS["llama-bpe"]


APART = [["ab", "c"], ["b", "c"], ["a", "bc"], ["a", "b"]]  # those of one token
REFUSED: list[tuple[dict[str, Any], Callable[[dict[str, Any]], Any], str]] = [
    (BPE, lambda made: made["model"].update(type="Unigram"), "of type 'Unigram'"),
    (BPE, lambda made: made["model"]["vocab"].update(z=10), "has 'z' as 10, the embedding 10 rows"),
    (BPE, lambda made: made["added_tokens"].append({"content": "ab", "id": 8}), "has 'ab' twice"),
    (BPE, lambda made: made.update(normalizer={"type": "Lowercase"}), "changes texts by Lowercase"),
    (BPE, splitting(LEVEL), "splits texts by \\[\\], a rule"),
    (BPE, splitting(SPLIT), "joins letters and not bytes"),
    (BPE, splitting({"type": "Whitespace"}, LEVEL), "splits texts by Whitespace"),
    (BPE, splitting(SPLIT, {**LEVEL, "add_prefix_space": True}), "splits texts by ByteLevel"),
    (BPE, splitting({**SPLIT, "behavior": "MergedWithNext"}, LEVEL), "splits texts by Split"),
    (SPM, lambda made: made["model"]["merges"].pop(), "not those of scores"),
    (SPM, lambda made: made["model"].update(merges=APART), "not those of scores"),
    (SPM, lambda made: made.update(normalizer=None), "leaves blanks as they are"),
    (SPM, lambda made: made["normalizer"]["normalizers"].append({"type": "NFKC"}), "changes texts by NFKC"),
]


@pytest.mark.parametrize(("words", "change", "message"), REFUSED)
def test_what_no_file_can_hold(words: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        gguf_words.vocabulary(changed(words, change), 10)
    assert "\n" not in str(error.value)
    assert "take tokenizer.json out of the folder" in str(error.value)


def test_what_is_left_out_is_said() -> None:
    _, remarks = gguf_words.vocabulary(changed(BPE, lambda made: made.update(normalizer={"type": "NFC"})), 10)
    assert remarks == ["that texts are brought to Unicode's form NFC"]
    _, remarks = gguf_words.vocabulary(changed(BPE, lambda made: made["added_tokens"][1].update(rstrip=True)), 10)
    assert remarks == ["that 1 added tokens take blanks beside them, such as '<tool>'"]


def test_roles() -> None:
    ids = {"bos": 5, "eos": 6, "unk": 7, "pad": 8, "sep": 9}
    found = gguf_words.roles(ids, [5], [], [6, 3, 2], [3])
    assert found == {
        "tokenizer.ggml.bos_token_id": 5, "tokenizer.ggml.eos_token_id": 6, "tokenizer.ggml.unknown_token_id": 7,
        "tokenizer.ggml.padding_token_id": 8, "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
    }  # fmt: skip
    assert gguf_words.roles({}, [], [], [4], [])["tokenizer.ggml.eos_token_id"] == 4
    assert gguf_words.roles({}, [], [1], [], [])["tokenizer.ggml.add_eos_token"] is True
    with pytest.raises(ValueError, match=r"answers end at tokens \[1, 2, 3, 4\]; a GGUF file can say three"):
        gguf_words.roles({}, [], [], [1, 2, 3, 4], [])
    for front in ([5, 6], [6]):
        with pytest.raises(ValueError, match="beside a text; a file can say one bos token"):
            gguf_words.roles(ids, front, [], [], [])


def test_a_title_that_llama_cpp_goes_by() -> None:
    """It looks for tokens of Phi-3 where a model is called so."""
    few, all_of_them = ({"tokenizer.ggml.tokens": each} for each in (["a"], [*gguf_words.PHI3, "a"]))
    assert gguf_words.title("My-Phi-3-mini", few) == {}
    assert gguf_words.title("My-Phi-3-mini", all_of_them) == {"general.name": "My-Phi-3-mini"}
    assert gguf_words.title("a", few) == {"general.name": "a"}


def test_the_same_ids_from_the_file(tmp_path: Path) -> None:
    """By the reader's own way back, for texts with letters that the vocabulary has not."""
    folder = shared("checkpoints/stories260K")
    words = json.loads((folder / "tokenizer.json").read_text())
    found, _ = gguf_words.vocabulary(words, 512)
    found |= gguf_words.roles({"bos": 1, "eos": 2, "unk": 0}, [1], [], [2], [])
    files.mount(tmp_path, gguf_vocabulary.files(found))
    ours, theirs = Tokenizer(tmp_path), Tokenizer(folder)
    for text in ("Once upon a time", "  zwei  Leerzeichen", "Ümi 😀 \n\n", "", "</s> in a text"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text, special=False)) == theirs.decode(theirs.encode(text, special=False))
