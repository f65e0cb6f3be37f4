"""Tokenizers: real vocabularies give the published ids, BOS never comes twice, streams never hold half a character."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.hub import DEMO
from minillm.text.tokenizer import TextStream, Tokenizer, held_back, stop_position
from tests.conftest import shared

DEMO_TOKENIZER = Tokenizer(DEMO)


@pytest.mark.parametrize("recorded", ["llama-spm", "phi-3"])
def test_llama_2_vocabulary_gives_the_recorded_ids(recorded: str) -> None:
    """Some forty hostile strings, with the ids that llama.cpp records for the vocabulary of Llama 2, which Phi-3 took
    over (the copy of TinyLlama's tokenizer.json in the shared material has three damaged merges)."""
    tokenizer = Tokenizer(shared("real-configs/microsoft__Phi-3-mini-128k-instruct"))
    texts = shared(f"tokenizers/ggml-vocab-{recorded}.gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    expected = shared(f"tokenizers/ggml-vocab-{recorded}.gguf.out").read_text().split("\n")
    assert len(texts) > 30
    for text, ids in zip(texts, expected, strict=False):
        assert tokenizer.encode(text, special=False) == [int(i) for i in ids.split()], repr(text)


@pytest.mark.parametrize(
    ("name", "bos"),
    [
        ("mistralai__Mistral-7B-Instruct-v0.3", "<s>"),
        ("mistralai__Mixtral-8x7B-v0.1", "<s>"),
    ],
)
def test_one_bos_and_never_two(name: str, bos: str) -> None:
    tokenizer = Tokenizer(shared(f"real-configs/{name}"))
    assert tokenizer.bos_id is not None
    plain = tokenizer.encode("Hello")
    assert plain[0] == tokenizer.bos_id
    assert plain.count(tokenizer.bos_id) == 1
    for typed in (f"{bos}Hello", f"{bos}{bos}Hello"):
        assert tokenizer.encode(typed)[:1] == [tokenizer.bos_id]
        assert tokenizer.encode(typed).count(tokenizer.bos_id) == 1
    assert tokenizer.encode(f"{bos}Hello", special=False).count(tokenizer.bos_id) == 1
    assert tokenizer.bos_id not in tokenizer.encode("Hello", special=False)


@pytest.mark.parametrize("flag", [True, False, None])
def test_tokenizer_json_says_whether_a_bos_comes(flag: bool | None, tmp_path: Path) -> None:
    """As in transformers 5: the post-processor of tokenizer.json has the word, not `add_bos_token`."""
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    config = {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "add_bos_token": flag}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert Tokenizer(tmp_path).encode("A fox") == theirs("A fox")["input_ids"]
    assert Tokenizer(tmp_path).encode("A fox")[0] == 0


@pytest.mark.parametrize(("flag", "starts"), [(True, True), (False, False), (None, True)])
def test_a_sentencepiece_model_goes_by_add_bos_token(
    flag: bool | None, starts: bool, spm_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(spm_folder / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": flag}))
    assert (Tokenizer(tmp_path).encode("fox")[0] == 1) is starts


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["日本語のテキスト", "🦊👩‍👩‍👧‍👦 fox", "naïve café", "\u200bzero", "한국어", "  two  spaces ", "a\n\n\tb"]
)


@settings(max_examples=200)
@given(texts)
def test_the_pieces_of_a_stream_are_the_text(text: str) -> None:
    """Byte by byte if need be: joined they are the whole, and no piece ends in half a character."""
    ids = DEMO_TOKENIZER.encode(text)
    stream = TextStream(DEMO_TOKENIZER)
    pieces = [stream.push(i) for i in ids]
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text.rstrip("\ufffd")
    assert DEMO_TOKENIZER.decode(ids) == text


@given(st.lists(st.integers(0, 767), max_size=40))
def test_any_ids_stream_as_they_decode(ids: list[int]) -> None:
    """Ids that are no text at all: broken bytes come out as the decoder writes them, but for the last."""
    stream = TextStream(DEMO_TOKENIZER)
    text = "".join([stream.push(i) for i in ids]) + stream.finish()
    assert text.rstrip("\ufffd") == DEMO_TOKENIZER.decode(ids).rstrip("\ufffd")
    assert not text.endswith("\ufffd")


def test_half_a_character_at_the_end_is_not_written() -> None:
    ids = DEMO_TOKENIZER.encode("a 狐", special=False)
    stream = TextStream(DEMO_TOKENIZER)
    assert "".join([stream.push(i) for i in ids[:-1]]) + stream.finish() == "a "


@settings(max_examples=100)
@given(texts)
def test_a_stream_of_sentencepiece_style_ids(text: str) -> None:
    """Byte fallback and a decoder that strips one leading space (the vocabulary of Mixtral)."""
    tokenizer = Tokenizer(shared("real-configs/mistralai__Mixtral-8x7B-v0.1"))
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    assert "".join([stream.push(i) for i in ids]) + stream.finish() == tokenizer.decode(ids).rstrip("\ufffd")


def test_stop_strings() -> None:
    assert stop_position("one two three", ["three", "two"]) == 4
    assert stop_position("one", ["two"]) is None
    assert held_back("end of st", ["stop", "fst"]) == 2
    assert held_back("abc", ["x"]) == 0
    assert held_back("aaa", ["aaab"]) == 3


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_held_back_is_the_longest_beginning_of_a_stop(text: str, stops: list[str]) -> None:
    expected = max(n for n in range(len(text) + 1) if n == 0 or any(s[:n] == text[-n:] and n < len(s) for s in stops))
    assert held_back(text, stops) == expected


@pytest.fixture(scope="module")
def spm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a SentencePiece model trained here, with byte fallback as Llama's has."""
    folder = tmp_path_factory.mktemp("spm")
    sentences = [f"The {a} fox said hello to {b} frogs by the river." for a in ("red", "old", "shy") for b in range(40)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 5),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    decoder = {
        "400": {"content": "<|im_start|>", "special": True},
        "401": {"content": "<|im_end|>", "special": True},
        "402": {"content": "<tool>", "special": False},
    }
    config = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": decoder, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_bare_sentencepiece_model(spm_folder: Path) -> None:
    tokenizer = Tokenizer(spm_folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(spm_folder / "tokenizer.model"))
    for text in ("The red fox", " two  spaces ", "狐 🦊", "a\nb"):
        assert tokenizer.encode(text) == [1, *model.encode(text)]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.encode("<s>fox").count(1) == 1
    chat = tokenizer.encode("<|im_start|>The fox<|im_end|>", special=False)
    assert (chat[0], chat[-1]) == (400, 401)
    assert tokenizer.decode(chat, skip_special=False) == "<|im_start|>The fox<|im_end|>"
    assert tokenizer.decode(chat) == "The fox"
    with_tool = tokenizer.encode("a <tool> b", special=False)
    assert 402 in with_tool
    assert "<tool>" in tokenizer.decode(with_tool)  # not special: it is part of the text


@pytest.mark.parametrize("legacy", [True, False])
def test_text_behind_a_special_token(spm_folder: Path, legacy: bool, tmp_path: Path) -> None:
    """legacy puts SentencePiece's dummy space in front of it, the newer way does not."""
    shutil.copytree(spm_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": legacy}))
    tokenizer = Tokenizer(tmp_path)
    pieces = [tokenizer.backend.model.id_to_piece(i) for i in tokenizer.encode("<s>fox", special=False)[1:]]
    assert "".join(pieces) == ("▁fox" if legacy else "fox")


@given(texts)
def test_sentencepiece_streams_as_it_decodes(spm_folder: Path, text: str) -> None:
    tokenizer = Tokenizer(spm_folder)
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    assert "".join([stream.push(i) for i in ids]) + stream.finish() == tokenizer.decode(ids).rstrip("\ufffd")


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", "{}"), ("tokenizer.model", "no model")])
def test_a_broken_tokenizer_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        Tokenizer(tmp_path)


def test_truncation_stored_in_a_tokenizer_is_not_applied(tmp_path: Path) -> None:
    """Some published files carry the truncation of their training script; a prompt must come through whole."""
    tokenizer = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer(tmp_path).encode("Once upon a time there was a fox")) > 4


@pytest.mark.parametrize("kind", ["json", "spm"])
def test_no_double_bos_without_a_tokenizer_config(kind: str, spm_folder: Path, tmp_path: Path) -> None:
    source = DEMO / "tokenizer.json" if kind == "json" else spm_folder / "tokenizer.model"
    shutil.copy(source, tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.bos_id == (0 if kind == "json" else 1)
    for text in ("fox", "<s>fox", "<s><s>fox"):
        assert tokenizer.encode(text).count(tokenizer.bos_id) == 1


def test_ids_beyond_a_sentencepiece_vocabulary_are_no_text(spm_folder: Path) -> None:
    tokenizer = Tokenizer(spm_folder)
    ids = tokenizer.encode("The fox")
    assert tokenizer.decode([*ids, 399, 10_000, -1]) == "The fox"


@pytest.mark.parametrize("added", [[1], {"x": "text"}, {"5": 7}])
def test_added_tokens_that_are_none(spm_folder: Path, tmp_path: Path, added: object) -> None:
    shutil.copy(spm_folder / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(ValueError, match="added token"):
        Tokenizer(tmp_path)


def test_text_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot encode this text"):
        DEMO_TOKENIZER.encode("a\udcff")
