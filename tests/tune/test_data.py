"""Lines of JSON in every format that people have, and what is refused in one line that names its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minillm.tune import data

ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "train.jsonl"
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("line", "name", "asked", "answered"),
    [
        ({"messages": [ASKED, ANSWERED]}, "messages", None, [ASKED, ANSWERED]),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "Be."},
            "ShareGPT",
            None,
            [{"role": "system", "content": "Be."}, ASKED, ANSWERED],
        ),
        (
            {"instruction": "Add", "input": "1 and 2", "output": "Hello", "history": [["a", "b"]], "system": ""},
            "Alpaca",
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
             {"role": "user", "content": "Add\n1 and 2"}],
            [ANSWERED],
        ),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, "Alpaca", [ASKED], [ANSWERED]),
        ({"prompt": "Hi", "completion": "Hello"}, "prompt and completion", "Hi", "Hello"),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, "prompt and completion", [ASKED], [ANSWERED]),
        ({"prompt": [ASKED], "completion": {"content": "Hello"}}, "prompt and completion", [ASKED], [ANSWERED]),
        ({"text": "Hi"}, "text", None, "Hi"),
    ],
)  # fmt: skip
def test_formats(tmp_path: Path, line: dict, name: str, asked: Any, answered: Any) -> None:
    found, records = data.read(written(tmp_path, line, "", line))
    assert found == name
    assert [each.line for each in records] == [1, 3]
    assert (records[0].asked, records[0].answered) == (asked, answered)


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [{**ANSWERED, "content": "Go away"}]},
        {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, {**ANSWERED, "content": "Go away"}]},
    ],
    ids=["with a prompt", "by what they share"],
)
def test_preferences(tmp_path: Path, line: dict) -> None:
    name, (record,) = data.read(written(tmp_path, line))
    assert name == "preference"
    assert (record.asked, record.answered) == ([ASKED], [ANSWERED])
    assert record.rejected == [{**ANSWERED, "content": "Go away"}]


def test_tools_and_variables_go_to_the_template(tmp_path: Path) -> None:
    line = {"messages": [ASKED, ANSWERED], "tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}}
    _, (record,) = data.read(written(tmp_path, line))
    assert record.options == {"tools": TOOLS, "variables": {"enable_thinking": False}}
    _, (record,) = data.read(written(tmp_path, {"conversations": [{"from": "gpt", "value": "a"}],
                                                "tools": json.dumps(TOOLS)}))  # fmt: skip
    assert record.options["tools"] == TOOLS


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "no lines; give one JSON object on each"),
        (["{"], "line 1: not valid JSON"),
        ([{"text": "a"}, "[1]"], "line 2: a list, expected an object"),
        ([{"question": "a"}], "line 1: the keys ['question'] are of no known format (messages: messages; "),
        ([{"text": "a"}, {"messages": [ANSWERED]}], "line 2: no 'text', though line 1 makes this a file of the format"),
        ([{"text": "a"}, {"text": ""}], "line 2: the text is empty"),
        ([{"text": 7}], "line 1: text is 7, expected a text"),
        ([{"messages": []}], "line 1: messages is [], expected a list of messages"),
        ([{"messages": ["hi"]}], "line 1: messages[0] is 'hi', expected a message such as"),
        ([{"messages": [ASKED]}], "line 1: no message is an assistant's, so there is nothing to learn"),
        ([{"messages": [ASKED, {**ANSWERED, "weight": 0}]}], "line 1: messages[1] has a weight, which is not followed"),
        ([{"conversations": [{"from": "bot", "value": "a"}]}], "conversations[0] is {'from': 'bot', 'value': 'a'}"),
        ([{"conversations": 3}], "conversations[0] is 3"),
        ([{"instruction": "a", "output": "b", "history": ["c"]}], "history[0] is 'c'"),
        ([{"prompt": "a", "completion": [ANSWERED]}], "some of it is a text and some a list of messages"),
        ([{"prompt": [ASKED], "completion": [ASKED]}], "what is learnt must be an assistant's messages"),
        ([{"chosen": "a", "rejected": "b"}], "no 'prompt', which texts that are chosen and rejected need"),
        ([{"chosen": [ASKED, ANSWERED], "rejected": [ASKED, ANSWERED]}], "must begin alike and end otherwise"),
        ([{"messages": [ANSWERED], "tools": {}}], "tools is {}, expected a list"),
        ([{"messages": [ANSWERED], "chat_template_kwargs": []}], "chat_template_kwargs is [], expected an object"),
    ],
)
def test_what_is_refused(tmp_path: Path, lines: list, said: str) -> None:
    with pytest.raises(ValueError, match=r"train\.jsonl") as error:
        data.read(written(tmp_path, *lines))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_too_much_or_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, {"text": "a"})
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2: byte 0xff at offset 10 is not UTF-8"):
        data.read(path)
    monkeypatch.setattr(data, "MAX_LINE_BYTES", 20)
    with pytest.raises(ValueError, match="line 1: 33 bytes, more than the 20 a line may have"):
        data.read(written(tmp_path, {"text": "a" * 21}))
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 30)
    with pytest.raises(ValueError, match="34 bytes, more than the 30 such a file may have"):
        data.read(path)
    with pytest.raises(ValueError, match="expected lines of JSON"):
        data.read(tmp_path / "train.json")


def test_keys_without_effect_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data.read(written(tmp_path, {"text": "a", "id": 3}, {"text": "b", "source": "web"}))
    assert "keys without effect: id, source" in capsys.readouterr().err
