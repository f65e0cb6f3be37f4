"""What is learnt of a conversation: exactly what its assistant says and the token that ends it, with every published
chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import minillm
from minillm.guard.jsonfile import read_json
from minillm.text.chat import ChatTemplate, find
from minillm.text.tokenizer import Tokenizer
from minillm.tune.data import Record
from minillm.tune.masking import Example, Masking
from tests.conftest import SHARED, shared
from tests.text.test_chat import special_tokens

TALK = [
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "Four, 4 and IV."},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "Seven – “sieben”."},
]
ANSWERS = ["Four, 4 and IV.", "Seven – “sieben”."]
# What templates put in front of an answer themselves: reasoning that is empty, or where an answer goes.
THEIR_OWN = re.compile(r"<think>\s*</think>\s*|<\|channel>thought\n<channel\|>|<\|channel\|>final<\|message\|>")


CUT_OFF = ("TinyLlama__TinyLlama-1.1B-Chat-v1.0",)  # whose tokenizer.json is not whole
# The configs name a stop token that no answer ends with, so that generation would not stop either.
NEVER_STOP = ("google__gemma-2b", "meta-llama__Meta-Llama-3-8B-Instruct")


class Bytes:
    """Bytes, and special tokens as ids of their own: for templates whose tokenizer is not here."""

    def __init__(self, special: Sequence[str]):
        self.special = sorted(special, key=len, reverse=True)
        self.eos_id: int | None = None

    def encode(self, text: str, special: bool = True) -> list[int]:
        pattern = "|".join(map(re.escape, self.special)) or "(?!)"
        found: list[int] = []
        at = 0
        for match in re.finditer(pattern, text):
            found += text[at : match.start()].encode()
            found.append(256 + self.special.index(match.group()))
            at = match.end()
        return found + list(text[at:].encode())

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        made = (bytes([i]) if i < 256 else b"" if skip_special else self.special[i - 256].encode() for i in ids)
        return b"".join(made).decode()


def published() -> list[str]:
    folders = sorted({path.parent for path in SHARED.glob("real-configs/*/*okenizer_config.json")})
    return [each.name for each in folders if find(each, read_json(each / "tokenizer_config.json")) is not None]


def standing_in(name: str) -> Any:
    """What `Masking` needs of a published checkpoint."""
    folder = shared(f"real-configs/{name}")
    config = read_json(folder / "tokenizer_config.json")
    special = special_tokens(config)
    source = find(folder, config)
    assert source is not None
    added = {int(i): each["content"] for i, each in (config.get("added_tokens_decoder") or {}).items()}
    path = folder / "generation_config.json"
    stated = (read_json(path) if path.is_file() else {}).get("eos_token_id")
    ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if (folder / "tokenizer.json").is_file() and name not in CUT_OFF:
        tokenizer: Any = Tokenizer(folder)
        ends = {*ids, tokenizer.eos_id}
    else:
        words = {added[i] for i in ids if i in added} | {special["eos_token"], special.get("eot_token", "")} - {""}
        tokenizer = Bytes([*{*added.values(), *special.values()}])
        ends = {256 + tokenizer.special.index(each) for each in words}
        tokenizer.eos_id = 256 + tokenizer.special.index(special["eos_token"])
    template = ChatTemplate(source, special)
    return SimpleNamespace(
        folder=folder, tokenizer=tokenizer, turn_ids=frozenset(ends), chat_template=lambda _: template
    )


def spans(tokenizer: Any, made: Sequence[Example], stops: frozenset[int]) -> list[tuple[str, int | None]]:
    """What is learnt in a row, as text, and the stop token that it ends with."""
    found = []
    for example in made:
        run: list[int] = []
        for i, learnt in zip([*example.ids, -1], [*example.learnt, False], strict=True):
            if learnt:
                run.append(i)
            elif run:
                end = run.pop() if run[-1] in stops else None
                found.append((tokenizer.decode(run, skip_special=False), end))
                run = []
    return found


@pytest.mark.parametrize("name", NEVER_STOP)
def test_a_checkpoint_that_does_not_know_its_stop_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"line 3: no stop token .* ends '.*<\|?e(nd_of_turn|nd_header_id|ot_id)\|?>"):
        Masking(standing_in(name), 4096).examples(Record(3, TALK))


@pytest.mark.parametrize("name", sorted({*published()} - {*NEVER_STOP}))
def test_what_is_learnt_is_what_assistants_say(name: str) -> None:
    llm = standing_in(name)
    masking = Masking(llm, 4096)
    made = masking.examples(Record(1, TALK))
    found = spans(llm.tokenizer, made, llm.turn_ids)
    assert [THEIR_OWN.sub("", text).strip() for text, _ in found] == ANSWERS
    assert all(end is not None for _, end in found)
    for example in made:  # what stands before an answer is what generation is given
        first = example.learnt.index(True)
        prompt = llm.chat_template(None).render(TALK[: 1 if first < len(made[0].ids) and example is made[0] else 3])
        assert example.ids[:first] == llm.tokenizer.encode(prompt, special=False)


def test_no_published_template_is_left_out() -> None:
    """By the text of the files, whatever the code that looks for templates finds."""
    has = {"tokenizer_config.json": '"chat_template"', "chat_template.json": "", "chat_template.jinja": ""}
    paths = [path for path in shared("real-configs").glob("*/*") if path.name in has]
    assert {path.parent.name for path in paths if has[path.name] in path.read_text()} == {*published()}


def test_the_given_material_has_templates_of_both_kinds() -> None:
    shared("real-configs")
    counts = {
        name: len(Masking(standing_in(name), 4096).examples(Record(1, TALK)))
        for name in published()
        if name not in NEVER_STOP
    }
    assert len(counts) >= 22
    assert 3 <= sum(count == 2 for count in counts.values()) < len(counts) / 2


@pytest.fixture(scope="module")
def llm() -> minillm.LLM:
    return minillm.load(dtype="float32", device="cpu", kernels="reference")


def test_a_template_that_marks_what_is_learnt_is_believed(llm: minillm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|story|>{% generation %}{{ m.content }}</s>"
        "{% endgeneration %}{% else %}<|user|>{{ m.content }}{% endif %}\n{% endfor %}"
    )
    template = ChatTemplate(source, {})
    monkeypatch.setattr(llm, "chat_template", lambda with_tools=False: template)
    made = Masking(llm, 512).examples(Record(1, TALK))
    assert [text for text, _ in spans(llm.tokenizer, made, llm.turn_ids)] == ANSWERS
    open_end = ChatTemplate(source.replace("</s>", ""), {})
    monkeypatch.setattr(llm, "chat_template", lambda with_tools=False: open_end)
    with pytest.raises(ValueError, match="line 7: no stop token is in what the chat template marks"):
        Masking(llm, 512).examples(Record(7, TALK))


def test_an_answer_whose_template_ends_nothing_gets_an_end(llm: minillm.LLM) -> None:
    masking = Masking(llm, 512)
    made = masking.examples(Record(1, TALK))
    assert len(made) == 2  # the end put behind is not in the template's text of the longer conversation
    assert all(example.ids[-1] == 1 and example.learnt[-1] for example in made)
    assert masking.counts["a stop token put behind"] == 2


def test_texts_and_completions(llm: minillm.LLM) -> None:
    masking = Masking(llm, 12)
    (made,) = masking.examples(Record(1, "a mouse.", asked="Once there was"))
    assert llm.tokenizer is not None
    assert made.ids == [*llm.tokenizer.encode("Once there was"), *llm.tokenizer.encode("a mouse.", special=False), 1]
    assert spans(llm.tokenizer, [made], llm.turn_ids) == [("a mouse.", 1)]
    whole = [*llm.tokenizer.encode("Once there was a mouse, and then there was an owl, and more of them."), 1]
    pieces = masking.examples(Record(1, "Once there was a mouse, and then there was an owl, and more of them."))
    assert [i for piece in pieces for i in piece.ids] == whole
    assert all(not piece.learnt[0] and all(piece.learnt[1:]) and len(piece.ids) <= 12 for piece in pieces)


def test_what_is_too_long_is_left_out_or_loses_its_oldest_turns(llm: minillm.LLM) -> None:
    messages = [{"role": "user", "content": "word " * 40}, {"role": "assistant", "content": "Yes."}, *TALK[:2]]
    record = Record(1, messages[-1:], messages[:-1])
    masking = Masking(llm, 40)
    assert masking.examples(record) == []
    assert masking.counts["left out, being too long"] == 1
    cutting = Masking(llm, 40, truncate=True)
    (made,) = cutting.examples(record)
    assert cutting.counts["turns cut"] == 1
    assert made == Masking(llm, 512).examples(Record(1, TALK[1:2], TALK[:1]))[0]


def test_a_pair_shares_its_prompt(llm: minillm.LLM) -> None:
    chosen, rejected = TALK[1:2], [{"role": "assistant", "content": "Five."}]
    pair = Masking(llm, 512).pair(Record(1, chosen, TALK[:1], rejected))
    assert pair is not None
    assert [text for text, _ in spans(llm.tokenizer, pair, llm.turn_ids)] == [ANSWERS[0], "Five."]
    firsts = [example.learnt.index(True) for example in pair]
    assert pair[0].ids[: firsts[0]] == pair[1].ids[: firsts[1]]


def test_an_example_is_shown_with_what_is_learnt(llm: minillm.LLM) -> None:
    masking = Masking(llm, 512)
    (made,) = masking.examples(Record(1, TALK[:2]))
    assert masking.shown(made, colours=False).endswith("<|story|>⟦Four, 4 and IV.</s>⟧")
    assert "\x1b[1;32mFour" in masking.shown(made, colours=True)


def test_a_space_that_an_answer_begins_with_is_shown() -> None:
    """Which its tokens alone do not have in tokenizers that put one in front of all texts."""
    masking = Masking(minillm.load(shared("checkpoints/stories260K"), "float32", "cpu", "reference"), 64)
    (made,) = masking.examples(Record(1, " a mouse.", asked="Once there was"))
    assert masking.shown(made, colours=False) == "<s> Once there was⟦ a mouse.</s>⟧"


def test_a_checkpoint_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        Masking(SimpleNamespace(folder=tmp_path, tokenizer=None), 512)  # type: ignore[arg-type]
