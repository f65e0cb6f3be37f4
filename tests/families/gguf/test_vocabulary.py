"""Vocabularies of GGUF files: the ids that llama.cpp records for forty hostile texts, and the metadata's own words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.families.gguf import vocabulary as gguf_vocabulary
from minillm.guard import files
from minillm.text.tokenizer import Tokenizer
from minillm.weights.gguf import reader
from tests.conftest import shared

# SentencePiece by score: letters, a word, bytes.
TOKENS = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab", "▁ab", "<end>", "<0x00>", "<0xC3>", "<0xA4>", "c",
          "bc"]  # fmt: skip
KINDS = [2, 3, 3, 1, 1, 1, 1, 1, 1, 4, 6, 6, 6, 1, 1]
SCORES = [0, 0, 0, -9, -7, -8, -3, -2, -1, 0, 0, 0, 0, -9, -0.5]
SPM: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": np.array(KINDS, np.int32),
    "tokenizer.ggml.scores": np.array(SCORES, np.float32),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def tokenizer(metadata: Mapping[str, Any], path: Path = Path("made.gguf")) -> Tokenizer:
    files.mount(path, gguf_vocabulary.files(metadata))
    return Tokenizer(path)


@pytest.mark.parametrize("name", ["deepseek-llm", "llama-bpe", "llama-spm", "phi-3", "qwen2"])
def test_recorded_ids(name: str) -> None:
    path = shared(f"tokenizers/ggml-vocab-{name}.gguf")
    found = tokenizer(reader.read(path).metadata, path)
    texts = shared(f"tokenizers/ggml-vocab-{name}.gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    expected = shared(f"tokenizers/ggml-vocab-{name}.gguf.out").read_text().split("\n")
    assert len(texts) > 40
    for text, ids in zip(texts, expected, strict=False):
        assert found.encode(text, special=False) == [int(i) for i in ids.split()], repr(text)


def test_the_highest_score_is_joined_first() -> None:
    """bc before ab could take the b; a byte where there is no letter; a token of the user stays whole."""
    found = tokenizer(SPM)
    assert found.encode("ab") == [1, 8]
    assert found.encode("abc") == [1, 6, 14]
    assert found.encode("aä", special=False) == [6, 11, 12]
    assert found.encode("a<end>b", special=False) == [6, 9, 3, 5]
    assert found.decode([1, 8, 9, 6]) == "ab<end> a"
    assert (found.bos_id, found.eos_id) == (1, 2)


def test_flags() -> None:
    assert tokenizer({**SPM, "tokenizer.ggml.add_space_prefix": False}).encode("ab") == [1, 7]
    assert tokenizer({**SPM, "tokenizer.ggml.add_bos_token": False}).encode("ab") == [8]
    assert tokenizer({**SPM, "tokenizer.ggml.add_eos_token": True}).encode("ab") == [1, 8, 2]


def test_ends_of_an_answer() -> None:
    """All ids that end a text, a turn or a message, each once, and turns that only a token's text tells of."""
    assert gguf_vocabulary.end_ids(SPM) == [2]
    assert gguf_vocabulary.end_ids({**SPM, "tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 2}) == [
        2,
        9,
    ]
    named = [*TOKENS[:9], "<|im_end|>", *TOKENS[10:]]
    controls = np.array([*KINDS[:9], 3, *KINDS[10:]], np.int32)
    assert gguf_vocabulary.end_ids({**SPM, "tokenizer.ggml.tokens": named}) == [2]
    changed = {"tokenizer.ggml.tokens": named, "tokenizer.ggml.token_type": controls}
    assert gguf_vocabulary.end_ids({**SPM, **changed}) == [2, 9]


def test_chat_templates() -> None:
    one = {**SPM, "tokenizer.chat_template": "plain"}
    assert tokenizer(one).config["chat_template"] == "plain"
    several = tokenizer({**one, "tokenizer.chat_template.tool_use": "tools"}).config["chat_template"]
    assert {each["name"]: each["template"] for each in several} == {"default": "plain", "tool_use": "tools"}


def test_templates_are_texts() -> None:
    with pytest.raises(ValueError, match="expected a text"):
        tokenizer({**SPM, "tokenizer.chat_template": np.zeros(3)})


def test_what_is_not_read() -> None:
    assert gguf_vocabulary.refusal(SPM) is None
    for changes, words in (
        ({"tokenizer.ggml.model": "t5"}, "'t5'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": ["qwen2"]}, "tokenizer.ggml.pre"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "martian"}, "'martian'"),
    ):
        assert words in str(gguf_vocabulary.refusal({**SPM, **changes}))
        assert not gguf_vocabulary.files({**SPM, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": [*TOKENS[:-1], "a"]}, "'a' twice"),
        ({"token_type": None}, "token_type"),
        ({"token_type": np.zeros(3, np.int32)}, "token_type"),
        ({"scores": np.zeros(3, np.float32)}, "scores"),
        ({"scores": "none"}, "scores"),
        ({"scores": ["0"] * 15}, "scores"),
        ({"token_type": ["1"] * 15}, "token_type"),
        ({"bos_token_id": 99}, "bos_token_id is 99"),
        ({"add_bos_token": 1}, "add_bos_token"),
        ({"model": "gpt2", "pre": "gpt-2"}, "merges is missing"),
        ({"model": "gpt2", "pre": "gpt-2", "merges": ["a b", "ab"]}, "merges has 'ab'"),
    ],
)
def test_what_contradicts_itself(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tokenizer({**SPM, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}})


# Letters by a list, as Gemma 4 has them: "bc" comes before "ab".
LETTERS = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "bc", "ab", "▁a", "\n", "\n\n", "<0xC3>", "<0xA4>", "<turn|>"]
LISTED: dict[str, Any] = {
    "tokenizer.ggml.model": "gemma4",
    "tokenizer.ggml.tokens": LETTERS,
    "tokenizer.ggml.token_type": np.array([2, 3, 3, *[1] * 9, 6, 6, 3], np.int32),
    "tokenizer.ggml.merges": ["b c", "a b", "▁ a", "\n \n"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def test_letters_joined_by_a_list() -> None:
    """No blank in front, one before each word; bytes where there is no letter; BOS in front, whatever the file says."""
    found = tokenizer({**LISTED, "tokenizer.ggml.add_bos_token": False})
    assert found.encode("abc") == [1, 4, 7]
    assert found.encode("ab ab", special=False) == [8, 3, 8]
    assert found.encode("\n\nä<turn|>", special=False) == [11, 12, 13, 14]
    assert found.decode([9, 7, 11]) == " abc\n\n"
    assert gguf_vocabulary.end_ids(LISTED) == [2, 14]
    with pytest.raises(ValueError, match="merges is missing"):
        tokenizer({**LISTED, "tokenizer.ggml.merges": None})
