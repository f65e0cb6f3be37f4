"""Where an answer ends: stop strings over special tokens, stop ids, and the end of a turn."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm.hub import DEMO
from tests.helpers.words import Words, completed

PROMPT = "Once upon a time"
NEW = 24


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
    too_many = ["x" * (1 + at) for at in range(1001)]
    odd_ones = {
        "stop_strings is 5": 5,
        "stop_strings: a stop string is": [""],
        "stop_strings: more than 1,000": too_many,
    }
    for message, odd in odd_ones.items():
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
    with pytest.raises(ValueError, match="unknown option beams") as caught:
        minillm.load().generate("a", beams=2)
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
