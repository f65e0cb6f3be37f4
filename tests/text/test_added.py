"""Special tokens that only files beside tokenizer.json have: the ids of transformers, or a line that says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from minillm.hub import DEMO
from minillm.text.tokenizer import Tokenizer

A, B = ({"content": f"<|{each}|>", "special": True, "normalized": False} for each in "ab")
SOURCES: dict[str, dict[str, Any]] = {
    "decoder": {"tokenizer_config": {"added_tokens_decoder": {"769": B, "768": A}}},
    "not special": {"tokenizer_config": {"added_tokens_decoder": {"768": {**A, "special": False}, "769": B}}},
    "strips": {
        "tokenizer_config": {"added_tokens_decoder": {"768": {**A, "rstrip": True}, "769": {**B, "lstrip": True}}}
    },
    "extra": {"tokenizer_config": {"extra_special_tokens": ["<|a|>", "<|b|>"]}},
    "additional": {"tokenizer_config": {"additional_special_tokens": ["<|a|>", "<|b|>"]}},
    "map": {"special_tokens_map": {"additional_special_tokens": ["<|a|>", "<|b|>"]}},
    "roles": {"tokenizer_config": {"eos_token": "<|a|>", "pad_token": "<|b|>"}},
    "roles of the map": {"special_tokens_map": {"eos_token": "<|a|>", "pad_token": B}},
    "the map beside a decoder": {
        "tokenizer_config": {"added_tokens_decoder": {"768": A}},
        "special_tokens_map": {"additional_special_tokens": ["<|b|>"]},
    },
    "a word of the vocabulary": {"tokenizer_config": {"extra_special_tokens": ["he", "<|a|>"]}},
}


def written(folder: Path, files: dict[str, Any]) -> Path:
    shutil.copy(DEMO / "tokenizer.json", folder)
    for name, values in {"tokenizer_config": {}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("source", SOURCES)
def test_tokens_beside_tokenizer_json_get_the_ids_of_transformers(source: str, tmp_path: Path) -> None:
    folder = written(tmp_path, SOURCES[source])
    ours, theirs = Tokenizer(folder), transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    for text in ("<|a|>the dog<|b|>", "<|a|> the <|b|> x", "the <|b|><|a|>"):
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.remarks == []


def test_added_tokens_json_states_ids(tmp_path: Path) -> None:
    """By the file's own words (transformers adds the first alone)."""
    tokenizer = Tokenizer(written(tmp_path, {"added_tokens": {"<|b|>": 769, "<|a|>": 768}}))
    assert tokenizer.encode("<|a|><|b|>")[1:] == [768, 769]


@pytest.mark.parametrize(("token", "stated"), [("<|a|>", 770), ("<|a|>", 5), ("he", 768)])
def test_an_id_that_cannot_be_is_said_and_not_replaced(token: str, stated: int, tmp_path: Path) -> None:
    plain = Tokenizer(written(tmp_path, {}))
    expected = plain.encode(f"{token} dog")
    decoder = {"added_tokens_decoder": {str(stated): {"content": token, "special": True}}}
    tokenizer = Tokenizer(written(tmp_path, {"tokenizer_config": decoder}))
    assert tokenizer.encode(f"{token} dog") == expected
    assert len(tokenizer.remarks) == 1
    assert f"{token!r} ({stated}, here" in tokenizer.remarks[0]
