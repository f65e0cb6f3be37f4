"""Marks that give an answer its structure: reasoning stays out of the text, in streams, chats and JSON."""

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

import minillm
from minillm import generate
from minillm.engine.completion import Completion
from minillm.text.answer import Chunk
from tests.helpers.words import Words, completed

HARMONY = Words(
    ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>", "assistant",
     "analysis", "final", "commentary", " to=functions.f", "json", "Hello!", " world", "Hm.", "{}", "user",
     "<think>", "</think>", "(channel)", "<turn>", "<|channel>", "<channel|>", "thought\n", "plan\n", "<|turn>"]
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
    "a named thought": ("<|turn>", "<|channel>thought\nHm.<channel|>Hello!", "Hello!", "Hm."),
    "a named thought, empty": ("<|turn>", "<|channel>thought\n<channel|>Hello!", "Hello!", ""),
    "a named thought that the prompt opens": ("<|turn><|channel>thought\n", "Hm.<channel|>Hello!", "Hello!", "Hm."),
    "a named thought that the prompt has": ("<|turn><|channel>thought\n<channel|>", "Hello!", "Hello!", ""),
    "another name": ("<|turn>", "<|channel>plan\nHm.<channel|>Hello!", "<|channel>plan\nHm.Hello!", ""),
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
    "a pair that a user speaks of": ("user<think>Hello!<turn>assistant", " world", " world", ""),
    "a channel that a user speaks of": (f"user{C}Hello!<turn>assistant", " world", " world", ""),
    "a thought cut off in the turn before": (f"{S}{C}analysis{M}Hm.{TURN}", f"{C}final{M}Hello!", "Hello!", ""),
    "a pair left open before a message": (f"<think>{TURN}", f"{M}Hello!", "Hello!", ""),
    "a header that does not end": (TURN, f"{C}final{' world' * 4}", f"{C}final{' world' * 4}", ""),
    "a header without an end": (TURN, f"{C}final{' world' * 60}{M}Hello!", f"{C}final{' world' * 60}Hello!", ""),
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
