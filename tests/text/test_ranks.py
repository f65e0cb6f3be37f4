"""Vocabularies that are lists of byte sequences: Llama 3's gives the published ids, and tekken.json those of the rule
itself, written here as tiktoken and mistral-common have it.

Both have been compared once with these packages over 10,237 texts and the vocabularies that mistral-common brings.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from minillm import hub
from minillm.guard.jsonfile import read_json
from minillm.text.pieces import BYTE_LEVEL
from minillm.text.tokenizer import Tokenizer
from minillm.weights.gguf import reader
from tests.conftest import shared
from tests.helpers.tiny import refused

PATTERN = r"\p{N}| ?[^\s\p{L}\p{N}]+|[^\r\n\p{L}\p{N}]?\p{L}+|\s+"
LETTERS = r"[0-9]| ?[^\sa-z0-9]+|[^\r\na-z0-9]?[a-z]+|\s+"  # the same for the texts below
PARAMS = {"dim": 16, "n_layers": 1, "n_heads": 2, "multiple_of": 8, "norm_eps": 1e-5, "vocab_size": 600}
SPECIALS = 30


def joined(piece: bytes, vocabulary: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding by ranks: of all neighbours those that make the lowest are joined, the first of equals."""
    if piece in vocabulary:
        return [vocabulary[piece]]
    parts = [bytes([byte]) for byte in piece]
    while True:
        made = [(vocabulary.get(a + b, len(vocabulary)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        if not made or min(made)[0] == len(vocabulary):
            return [vocabulary[part] for part in parts]
        i = min(made)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def grown(count: int) -> list[bytes]:
    """All bytes, and tokens made of two others, so that many are made in several ways."""
    made, dice = [bytes([i]) for i in range(256)], random.Random(0)
    letters = [bytes([i]) for i in b"abcde "] + ["é".encode(), "猫".encode()]
    while len(made) < count:
        token = dice.choice(letters) + dice.choice(made[-40:] + letters)
        if len(token) < 12 and token not in made:
            made.append(token)
    return made


def tekken(**changes: Any) -> dict[str, Any]:
    vocab = [{"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
             for i, token in enumerate(grown(420))]  # fmt: skip
    config = {"pattern": PATTERN, "default_vocab_size": 400 + SPECIALS, "default_num_special_tokens": SPECIALS}
    return {"config": config, "vocab": vocab, **changes}


def texts() -> list[str]:
    dice = random.Random(1)
    return ["".join(dice.choice("aabbccdde  é猫1.\n") for _ in range(dice.randrange(60))) for _ in range(400)]


def made_folder(folder: Path, **files: Any) -> Path:
    """A folder of Meta's or Mistral's that has no use but its tokenizer."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name.replace("_", ".")).write_bytes(data)
    torch.save({"output.weight": torch.ones(600, 16)}, folder / "consolidated.00.pth")
    return folder


def test_tekken(tmp_path: Path) -> None:
    """Ids by the rule, behind those of special tokens; tokens beyond the size are left out; back to the same text."""
    params = {**PARAMS, "hidden_dim": 8}
    del params["multiple_of"]
    made = Tokenizer(hub.resolve(made_folder(tmp_path, params_json=params, tekken_json=tekken())))
    assert (made.bos_id, made.eos_id, made.backend.size) == (1, 2, 400 + SPECIALS)
    assert [made.backend.name_of(i) for i in (3, 19, 20, 29)] == ["[INST]", "[TOOL_CONTENT]", "<SPECIAL_20>",
                                                                  "<SPECIAL_29>"]  # fmt: skip
    vocabulary = {token: i for i, token in enumerate(grown(420)[:400])}
    for text in texts():
        words = re.findall(LETTERS.replace("a-z", "a-zé猫"), text)
        assert "".join(words) == text
        expected = [SPECIALS + i for word in words for i in joined(word.encode(), vocabulary)]
        assert made.encode(text) == [1, *expected], repr(text)
        assert made.decode([1, *expected]) == text
    assert made.encode("a</s>") == [1, SPECIALS + ord("a"), 2]


def test_tekken_beside_a_usual_checkpoint(folder: Path) -> None:
    """In place of tokenizer.json; special tokens may have names of their own."""
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).unlink(missing_ok=True)
    special = [{"rank": i, "token_str": f"<{i}>" if i != 1 else "<s>", "is_control": True} for i in range(5)]
    (folder / "tekken.json").write_text(json.dumps(tekken(special_tokens=special)))
    (folder / "params.json").write_text(json.dumps(PARAMS))  # as Mistral's repositories have both
    made = Tokenizer(hub.resolve(folder))
    assert [made.backend.name_of(i) for i in (0, 1, 4, 5)] == ["<0>", "<s>", "<4>", "<SPECIAL_5>"]


def llama_3(folder: Path, scaled: bool) -> tuple[Path, list[str]]:
    """A folder with Llama 3's vocabulary as Meta gives it out, and llama.cpp's names of all tokens."""
    tokens = reader.read(shared("tokenizers/ggml-vocab-llama-bpe.gguf")).metadata["tokenizer.ggml.tokens"]
    data = [bytes(BYTE_LEVEL[letter] for letter in token) for token in tokens[:128000]]
    lines = b"".join(base64.b64encode(each) + b" %d\n" % i for i, each in enumerate(data))
    params = {**PARAMS, "vocab_size": 128256, "rope_theta": 500000.0, "use_scaled_rope": scaled}
    return hub.resolve(made_folder(folder, params_json=params, tokenizer_model=lines)), tokens


def test_llama_3_gives_the_recorded_ids(tmp_path: Path) -> None:
    folder, tokens = llama_3(tmp_path, scaled=False)
    made = Tokenizer(folder)
    assert [made.backend.name_of(128000 + i) for i in range(256)] == tokens[128000:]
    assert (made.bos_id, made.eos_id) == (128000, 128001)
    given = shared("tokenizers/ggml-vocab-llama-bpe.gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    expected = shared("tokenizers/ggml-vocab-llama-bpe.gguf.out").read_text().splitlines()
    assert len(expected) > 40
    for text, ids in zip(given, expected, strict=False):
        assert made.encode(text) == [128000, *map(int, ids.split())], repr(text)


def test_llama_3_1_has_names_and_ends_of_its_own(tmp_path: Path) -> None:
    folder, _ = llama_3(tmp_path, scaled=True)
    made = Tokenizer(folder)
    names = [made.backend.name_of(128000 + i) for i in range(256)]
    assert [names.index(f"<|{each}|>") for each in ("finetune_right_pad_id", "eom_id", "python_tag")] == [4, 8, 10]
    assert names[-1] == "<|reserved_special_token_247|>"
    hub.resolve(folder)  # once more changes nothing
    ends = read_json(folder / "generation_config.json")["eos_token_id"]
    assert [names[i - 128000] for i in ends] == ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]


def test_sentencepiece_of_makers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A numbered tokenizer.model is one; that of the folder above is taken, and said."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_prefix=str(tmp_path / "tokenizer"), vocab_size=60, model_type="bpe",
        character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    numbered = made_folder(tmp_path / "numbered", params_json=PARAMS)
    (numbered / "tokenizer.model.v3").write_bytes((tmp_path / "tokenizer.model").read_bytes())
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/tokenizer.model").write_bytes((tmp_path / "tokenizer.model").read_bytes())
    expected = Tokenizer(tmp_path / "plain").encode("abc dé")
    assert len(expected) > 3
    assert Tokenizer(hub.resolve(numbered)).encode("abc dé") == expected
    assert capsys.readouterr().err == ""
    inner = made_folder(tmp_path / "inner", params_json=PARAMS)
    assert Tokenizer(hub.resolve(inner)).encode("abc dé") == expected
    made = Tokenizer(hub.resolve(inner))
    assert (made.encode("abc dé"), made.bos_id, made.eos_id) == (expected, 1, 2)
    assert "the one of the folder above is taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": None}, "no config or no vocab"),
        ({"config": {"pattern": PATTERN, "default_vocab_size": 9}}, "config lacks pattern, default_vocab_size or"),
        ({"vocab": []}, "430 tokens, of which 0 are listed and 30 special"),
        ({"vocab": [{"rank": 1, "token_bytes": "AA=="}] * 400}, "entry 0 of vocab is not a token of rank 0"),
        ({"vocab": [{"rank": i, "token_bytes": "*"} for i in range(400)]}, "token 0 is '*', expected 1 to 512 bytes"),
        ({"vocab": [{"rank": i, "token_bytes": "AA=="} for i in range(400)]}, "a token stands there twice"),
        ({"special_tokens": "<s>"}, "special_tokens is no list"),
        ({"special_tokens": [{"rank": 40, "token_str": "<s>"}]}, "texts with ranks from 0 to 29"),
        ({"special_tokens": [{"rank": {}, "token_str": "<s>"}]}, "texts with ranks from 0 to 29"),
        ({"special_tokens": [{"rank": 1, "token_str": each} for each in ("<s>", "</s>")]}, "a rank or a text twice"),
        ({"special_tokens": [{"rank": 0, "token_str": "<unk>"}]}, "lacks <s>"),
        ({"special_tokens": [{"rank": 0, "token_str": "<s>"}, {"rank": 1, "token_str": "a"}]}, "token 'a' is also"),
    ],
)
def test_files_that_are_none(changes: dict[str, Any], message: str, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tekken.json").write_text(json.dumps(tekken(**changes)))
    refused(folder, message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"AA== 0\nAQ== 2\n", "not a list of tokens and their ranks in order"),
        (b"AA== 0\nAQ==\n", "not a list of tokens and their ranks in order"),
        (b"AA== 0\n\xff 1\n", "token 1 is 'ÿ', expected 1 to 512 bytes in base64"),
    ],
)
def test_lists_that_are_none(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer(hub.resolve(made_folder(tmp_path, params_json=PARAMS, tokenizer_model=data)))
