"""Where an answer ends and what is shown of it: stop strings over special tokens, and marks that delimit parts."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm import generate
from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from minillm.hub import DEMO
from minillm.text.answer import Chunk

PROMPT = "Once upon a time"
NEW = 24


class Words:
    """A vocabulary of words, of which those in angle brackets are special tokens."""

    def __init__(self, words: list[str]):
        self.words = words

    def decode(self, ids: Any, skip_special: bool = True) -> str:
        return "".join(self.words[i] for i in ids if not (skip_special and self.words[i].startswith("<")))


def completed(words: Words, ids: list[int], prompt: list[int], **options: Any) -> tuple[Completion, list[str]]:
    """A completion that has been given ids until it stopped, and the pieces that it gave."""
    row = Completion(prompt, Sampling(), len(ids), tokenizer=words, **options)  # type: ignore[arg-type]
    pieces = []
    for i in ids:
        pieces.append(row.push(i))
        if row.finish_reason:
            break
    return row, pieces


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """The demo with two of the tokens that it is about to write made special, and the ids that it writes."""
    folder = Path(shutil.copytree(DEMO, tmp_path_factory.mktemp("special") / "demo"))
    ids = minillm.load(dtype="float32").generate(PROMPT, max_new_tokens=NEW, temperature=0).token_ids
    tokenizer = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    tokenizer.add_special_tokens([str(tokenizer.id_to_token(ids[at])) for at in (7, 12)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, ids


@pytest.mark.parametrize(
    ("first", "last", "cut"), [(7, 8, 0), (7, 10, 0), (5, 8, 1), (4, 9, 0), (11, 14, 2), (3, 4, 0)], ids=str
)
def test_it_stops_at_special_tokens_where_transformers_does(
    first: int, last: int, cut: int, special: tuple[Path, list[int]]
) -> None:
    """Stops made of what the model writes, special tokens in them or alone, in a stream, a batch and with guesses."""
    folder, ids = special
    llm = minillm.load(folder, dtype="float32")
    assert llm.tokenizer is not None
    assert llm.tokenizer.decode([ids[7]]) == ""
    stop = llm.tokenizer.decode(ids[first:last], skip_special=False)[cut:]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    reply = theirs.generate(
        **prompt, max_new_tokens=NEW, do_sample=False, stop_strings=[stop], tokenizer=tokenizer, pad_token_id=1
    )
    expected = reply[0, prompt["input_ids"].shape[1] :].tolist()
    assert len(expected) < NEW
    whole = llm.tokenizer.decode(expected, skip_special=False)
    specials = "|".join(re.escape(llm.tokenizer.decode([ids[at]], skip_special=False)) for at in (7, 12))
    text = re.sub(specials, "", whole[: whole.index(stop)])
    options: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 0, "stop": stop}
    results = llm.generate([PROMPT, "There", PROMPT], **options)
    assert isinstance(results, list)
    guessed = llm.generate(PROMPT, prompt_lookup=2, **options)
    for result in (results[0], results[2], guessed, llm.generate(PROMPT, deterministic=True, **options)):
        assert isinstance(result, minillm.Result)
        assert (result.token_ids, result.text, result.finish_reason) == (expected, text, "stop")
    assert "".join(llm.stream(PROMPT, **options)) == text


VOCABULARY = Words(["a", "b", "ab", "<x>", "<y>", "ba", " "])


@given(
    st.lists(st.integers(0, len(VOCABULARY.words) - 1), max_size=12),
    st.lists(st.lists(st.sampled_from(["a", "b", "<x>", "<y>", "x>", "<"]), min_size=1, max_size=3), max_size=3),
)
def test_the_text_is_what_stands_before_the_first_stop(ids: list[int], drawn: list[list[str]]) -> None:
    """Searched in everything that came, token by token; nothing of a stop is given away, nothing held back at last."""
    stops = ["".join(parts) for parts in drawn]
    count, cut = len(ids), None
    for count in range(1, len(ids) + 1):
        raw = VOCABULARY.decode(ids[:count], skip_special=False)
        if found := [at for stop in stops if (at := raw.find(stop)) >= 0]:
            cut = min(found)
            break
    raw = VOCABULARY.decode(ids[:count], skip_special=False)[:cut]
    expected = re.sub("<[xy]?(>|$)", "", raw)
    row, pieces = completed(VOCABULARY, ids, [0], stops=stops)
    assert "".join(pieces) == row.text == expected
    assert len(row.token_ids) == count
    assert row.finish_reason == (None if not ids else "length" if cut is None else "stop")


def test_stops_of_generation_config_and_of_ids(special: tuple[Path, list[int]], tmp_path: Path) -> None:
    folder, ids = special
    assert minillm.load(folder, dtype="float32").generate(PROMPT, max_new_tokens=NEW, temperature=0).token_ids == ids
    folder = Path(shutil.copytree(folder, tmp_path / "demo"))
    stop = minillm.load(folder).tokenizer.decode([ids[7]], skip_special=False)  # type: ignore[union-attr]
    options: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 0}
    for stated in (stop, ["zzz", stop]):
        (folder / "generation_config.json").write_text(json.dumps({"stop_strings": stated, "eos_token_id": 1}))
        llm = minillm.load(folder, dtype="float32")
        assert llm.generate(PROMPT, **options).token_ids == ids[:8]
        assert llm.generate(PROMPT, stop=[], **options).token_ids == ids
        assert llm.generate(PROMPT, stop="zzz", **options).token_ids == ids
    for odd, message in ((5, "stop_strings is 5"), ([""], "stop_strings: a stop string is empty")):
        (folder / "generation_config.json").write_text(json.dumps({"stop_strings": odd}))
        with pytest.raises(ValueError, match=f"generation_config.json: {message}"):
            minillm.load(folder, dtype="float32").generate(PROMPT, **options)
    llm = minillm.load(special[0], dtype="float32")
    for ignore_eos in (True, False):
        result = llm.generate(PROMPT, stop_token_ids=[ids[9], 3], ignore_eos=ignore_eos, **options)
        assert isinstance(result, minillm.Result)
        assert (result.token_ids, result.finish_reason) == (ids[:10], "stop")
        assert result.text == llm.tokenizer.decode(ids[:9])  # type: ignore[union-attr]
    for odd, message in (([768], "768 is outside the vocabulary of 768"), ([-1], "-1"), ("x", "stop_token_ids is x")):
        with pytest.raises(ValueError, match=message):
            llm.generate(PROMPT, stop_token_ids=odd, **options)


def test_stated_stop_strings_need_no_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"stop_strings": "x"}))
    assert len(minillm.load(folder).generate(prompt_ids=[1], max_new_tokens=3).token_ids) == 3  # type: ignore[union-attr]
    assert "generation_config.json keys without effect here: stop_strings" in capsys.readouterr().err


def test_unknown_options_name_all_that_are_known() -> None:
    with pytest.raises(ValueError, match="unknown option logprobs") as caught:
        minillm.load().generate("a", logprobs=True)
    for name in ("max_new_tokens", "stop", "stop_token_ids", "ignore_eos", "tools", "template_variables", "draft"):
        assert f" {name}," in str(caught.value) or str(caught.value).endswith(f" {name}")


def test_the_end_of_a_turn_that_only_the_tokenizer_knows(
    special: tuple[Path, list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ids = special
    minillm.load(folder)
    assert capsys.readouterr().err == ""  # the tokenizer's is that of the configs
    folder = Path(shutil.copytree(folder, tmp_path / "demo"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    name = json.loads((folder / "tokenizer.json").read_text())["added_tokens"][-2]["content"]
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    config |= {"eos_token": name, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    llm = minillm.load(folder, dtype="float32")
    assert capsys.readouterr().err.count(f"({ids[7]}) is no eos_token_id of the configs") == 1
    options: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 0}
    conversation = [{"role": "user", "content": PROMPT}]
    chat, plain = llm.generate(messages=conversation, **options), llm.generate(PROMPT, **options)
    assert isinstance(chat, minillm.Result)
    assert isinstance(plain, minillm.Result)
    assert chat.prompt_token_ids == plain.prompt_token_ids
    assert (chat.token_ids, plain.token_ids) == (ids[:8], ids)
    assert "".join(llm.stream(messages=conversation, **options)) == llm.tokenizer.decode(ids[:7])  # type: ignore[union-attr]
    assert llm.generate(messages=conversation, ignore_eos=True, **options).token_ids == ids  # type: ignore[union-attr]


HARMONY = Words(
    ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>", "assistant",
     "analysis", "final", "commentary", " to=functions.f", "json", "Hello!", " world", "Hm.", "{}", "user",
     "<think>", "</think>", "(channel)"]
)  # fmt: skip


def ids_of(text: str) -> list[int]:
    return [HARMONY.words.index(each) for each in re.findall(r"<.*?>|[^<]+", text) for each in words_of(each)]


def words_of(text: str) -> list[str]:
    found = []
    while text:
        word = next(each for each in HARMONY.words if text.startswith(each))
        found.append(word)
        text = text[len(word) :]
    return found


C, M, E, S = "<|channel|>", "<|message|>", "<|end|>", "<|start|>assistant"
THOUGHT = f"{C}analysis{M}Hm.{E}"
TURN = f"<|start|>user{M}Hello!{E}{S}"
CALL = f"{C}commentary to=functions.f <|constrain|>json{M}{{}}<|call|>".replace(".f <", ".f<")
# Prompt, what comes, and which text and reasoning that is.
ANSWERS = {
    "both": (TURN, f"{THOUGHT}{S}{C}final{M}Hello! world", "Hello! world", "Hm."),
    "a stop token that is none": (TURN, f"{THOUGHT}{S}{C}final{M}Hello!<|return|>", "Hello!", "Hm."),
    "only final": (TURN, f"{C}final{M}Hello!", "Hello!", ""),
    "never final": (TURN, f"{C}analysis{M}Hm. world", "", "Hm. world"),
    "cut in the header": (TURN, f"{THOUGHT}{S}{C}fin".removesuffix("fin"), "", "Hm."),
    "two thoughts": (TURN, f"{THOUGHT}{S}{THOUGHT}{S}{C}final{M}Hello!", "Hello!", "Hm.\nHm."),
    "a call": (TURN, THOUGHT + S + CALL, S + CALL, "Hm."),
    "a call at once": (TURN, CALL, CALL, ""),
    "recipient first": (TURN, f" to=functions.f{C}commentary{M}{{}}", f" to=functions.f{C}commentary{M}{{}}", ""),
    "a preamble": (
        TURN,
        f"{C}commentary{M}Hello!{E}{S}{C}final{M} world",
        f"{C}commentary{M}Hello!{E} world",
        "",
    ),
    "no channel": (TURN, f"{M}Hello!{E}", "Hello!", ""),
    "prefilled final": (TURN + f"{C}final{M}Hello!", " world<|return|>", " world", ""),
    "prefilled thought": (TURN + f"{C}analysis{M}", f"Hm.{E}{S}{C}final{M}Hello!", "Hello!", "Hm."),
    "name in the prompt": (TURN + C, f"analysis{M}Hm.{E}{S}{C}final{M}Hello!", "Hello!", "Hm."),
    "plain text": ("Hello!", " world", " world", ""),
    "marks that say nothing by themselves": ("Hello!", f"{E}<|start|> world", " world", ""),
    "a pair": ("Hello!", "<think>Hm.</think>Hello!", "Hello!", "Hm."),
    "a pair begun in the prompt": ("Hello!<think>", "Hm.</think>Hello!", "Hello!", "Hm."),
}


@pytest.mark.parametrize("stops", [(), ("never comes",)], ids=["plain", "with stops"])
@pytest.mark.parametrize("case", ANSWERS)
def test_marks_keep_reasoning_out_of_the_text(case: str, stops: tuple[str, ...]) -> None:
    prompt, written, text, reasoning = ANSWERS[case]
    row, pieces = completed(HARMONY, ids_of(written), ids_of(prompt), stops=stops)
    assert (row.text, row.reasoning) == (text, reasoning)
    assert "".join(pieces) == text


def test_a_stop_string_may_be_a_mark_or_come_in_the_reasoning() -> None:
    written = ids_of(f"{THOUGHT}{S}{C}final{M}Hello! world")
    for stop, text, reasoning in ((f"{M}Hello!", "", "Hm."), ("m.", "", "H"), ("lo", "Hel", "Hm."), (E, "", "Hm.")):
        row, pieces = completed(HARMONY, written, ids_of(TURN), stops=[stop])
        assert (row.text, row.reasoning, row.finish_reason, "".join(pieces)) == (text, reasoning, "stop", text)


def test_a_chunk_is_cut_where_its_raw_text_is() -> None:
    """A first word is shown without its space, a quoted header comes with the mark that ends it."""
    for raw, shown, at, expected in ((" Hello", "Hello", 3, "He"), ("<x>", "", 2, ""), ("<m>", "head<m>", 0, "head")):
        front, back = Chunk(raw, shown, "text").split(at)
        assert (front.shown, back.shown) == (expected, shown[len(expected) :])
        assert (front.raw, back.raw) == (raw[:at], raw[at:])


def test_marks_that_are_no_special_tokens_are_text() -> None:
    """Some vocabularies have <think> as a word: it is in the text, and stays there."""

    class Plain(Words):
        def decode(self, ids: Any, skip_special: bool = True) -> str:
            return super().decode(ids, skip_special=False)

    words = Plain(HARMONY.words)
    written = "<think>Hm.</think>Hello!"
    row, _ = completed(words, ids_of(written), ids_of(TURN + C))
    assert (row.text, row.reasoning) == (written, "")


@pytest.fixture(scope="module")
def harmony(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A random model whose tokens are named so that what it writes has a thought and an answer."""
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("harmony") / "checkpoint"))
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 100.0, "max_new_tokens": 9}))
    prompt = [1, 2, 3]
    ids = minillm.load(folder).generate(prompt_ids=prompt, ignore_eos=True).token_ids  # type: ignore[union-attr]
    assert len({*ids, *prompt}) == 12
    names = {i: f"w{i}" for i in range(97)} | dict(zip(prompt, ["<|message|>", "Hi", "<|start|>"], strict=True))
    answer = ["<|channel|>", "analysis", "Hm.", "<|end|>", "assistant", "final", "Hello", "!", "x"]
    names |= dict(zip(ids, answer, strict=True))
    return folder, ids


def named(folder: Path, names: dict[int, str], target: Path) -> Path:
    """A copy of a checkpoint with a vocabulary of words, those in angle brackets special."""
    folder = Path(shutil.copytree(folder, target))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in names.items()}, "w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens([name for name in names.values() if name.startswith("<")])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.thinking | default('') }} {{ m.content }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_results_chats_and_json_have_the_reasoning_apart(
    harmony: tuple[Path, list[int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, ids = harmony
    names = {i: f"w{i}" for i in range(97)} | {1: "a", 2: "b", 3: "c"}
    answer = ["<think>", "Hm.", "Well.", "</think>", "Hello", "!", "x", "y", "z"]
    folder = named(folder, names | dict(zip(ids, answer, strict=True)), tmp_path / "named")
    arguments = ["--weights", str(folder), "--ignore-eos"]
    llm = minillm.load(folder)
    result = llm.generate("a b c", max_new_tokens=6, ignore_eos=True)
    assert isinstance(result, minillm.Result)
    assert (result.text, result.reasoning) == ("Hello!", "Hm.Well.")
    assert capsys.readouterr().err == ""
    short = llm.generate("a b c", max_new_tokens=3, ignore_eos=True)
    assert (short.text, short.reasoning) == ("", "Hm.Well.")  # type: ignore[union-attr]
    assert "the answer has reasoning and no text" in capsys.readouterr().err
    assert generate.main([*arguments, "--prompt", "a b c", "--max-new-tokens", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["reasoning"]) == ("Hello!", "Hm.Well.")
    asked: list[Any] = []
    completion = minillm.LLM.completion

    def recorded(self: minillm.LLM, *given: Any, **options: Any) -> Completion:
        asked.append([dict(message) for message in options["messages"]])
        return completion(self, *given, **options)

    monkeypatch.setattr(minillm.LLM, "completion", recorded)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b\n")))
    assert generate.main([*arguments, "--chat", "--prompt", "a b c", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out.startswith("Hello!\n")
    assert asked[1][1] == {"role": "assistant", "content": "Hello!", "thinking": "Hm.Well."}
