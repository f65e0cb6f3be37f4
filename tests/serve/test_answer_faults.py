"""What has broken parsers of others, and where an answer begins."""

from __future__ import annotations

from typing import Any

import pytest

from minillm.serve.answers import Piece, Reader, style_of, styles
from tests.helpers.answers import TOOLS, WRITERS, calls_of, read, reader, shown
from tests.serve.test_answers import same_when_cut

CALL = WRITERS["tagged"]([("weather", {"text": "Paris"})])
THINKING = "<|im_start|>assistant\n<think>\n"
EITHER = pytest.mark.parametrize("early", [True, False])


def kinds(text: str, tail: str = "", style: str = "tagged", reason: str = "stop", **how: Any) -> dict[str, str]:
    """What each field of an answer has."""
    for early in (True, False):
        same_when_cut(style, text, rounds=20, reason=reason, tail=tail, early=early, **how)
    found = read(reader(style, tail=tail, **how), [text], reason)
    return {kind: shown(found, kind) for kind in dict.fromkeys(piece.kind for piece in found)}


def test_reasoning_stands_apart() -> None:
    assert kinds("<think>\nHm.\n</think>\n\nYes.") == {"reasoning": "Hm.", "content": "Yes."}
    assert kinds("Hm.\n</think>\n\nYes.", THINKING) == {"reasoning": "Hm.", "content": "Yes."}
    assert kinds("<think>\n\n</think>\n\nYes.") == {"content": "Yes."}
    assert kinds("Yes.", "<|im_start|>assistant\n<think>\n\n</think>\n\n") == {"content": "Yes."}
    assert kinds("[THINK]Hm.[/THINK]Yes.", style="named") == {"reasoning": "Hm.", "content": "Yes."}
    assert kinds("<seed:think>Hm.</seed:think>Yes.", style="prefixed") == {"reasoning": "Hm.", "content": "Yes."}
    parted = "<|think|>Hm.<|end|><|begin|>assistant<|content|>Yes.<|flush|>"
    assert kinds(parted, "<|begin|>assistant", "parted") == {"reasoning": "Hm.", "content": "Yes."}
    assert kinds("<|content|>Yes.", "<|begin|>assistant<|think|><|end|><|begin|>assistant", "parted") == {
        "content": "Yes."
    }
    channel = "<|channel>thought\nHm.\n<channel|>Yes."
    assert kinds(channel, style="quoted") == {"reasoning": "Hm.", "content": "Yes."}


def test_what_a_user_wrote_does_not_open_reasoning() -> None:
    assert kinds("Yes.", "<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n") == {"content": "Yes."}
    assert kinds("Yes.", "What is <think> for a base model?\nAnswer: ") == {"content": "Yes."}
    assert kinds("Hm.</think>Yes.", "User: Hi\nAssistant: <think>\n") == {"reasoning": "Hm.", "content": "Yes."}


def test_reasoning_goes_on_where_the_prompt_leaves_it() -> None:
    assert kinds(" so.</think>Yes.", THINKING + "I think") == {"reasoning": "so.", "content": "Yes."}
    half = "<|turn>model\n<|tool_response>response:now{}<tool_response|><|channel>"
    assert kinds("thought\nHm.<channel|>Yes.", half, "quoted") == {"reasoning": "Hm.", "content": "Yes."}
    assert kinds("Yes.", half, "quoted") == {"content": "Yes."}
    analysis = "<|start|>assistant<|channel|>analysis<|message|>So"
    assert kinds(" on<|end|><|start|>assistant<|channel|>final<|message|>Yes.", analysis, "channels") == {
        "reasoning": "on", "content": "Yes.",
    }  # fmt: skip


def test_a_call_in_reasoning_is_not_lost() -> None:
    open_ended = kinds(f"I will look.\n{CALL}", THINKING)
    assert open_ended == {"reasoning": "I will look.", "call": "weather", "arguments": '{"text": "Paris"}'}
    closed = kinds(f"I will look.\n{CALL}\n</think>\n\nThere.", THINKING)
    assert closed == {**open_ended, "content": "There."}


def test_a_call_talked_about_in_reasoning_stays_there() -> None:
    text = "I could write <tool_call> or `" + CALL.replace("\n", "") + "`.\n</think>No."
    assert kinds(text, THINKING) == {"reasoning": text[: text.index("\n</think>")], "content": "No."}
    text = "So\n<tool_call>\nbegins a call.\n</think>No."
    assert kinds(text, THINKING) == {"reasoning": text[: text.index("\n</think>")], "content": "No."}


def test_special_tokens_do_not_leak() -> None:
    specials = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
    assert kinds("Hm<|im_end|>", THINKING, reason="length", specials=specials) == {"reasoning": "Hm"}
    assert kinds("Yes.<|im_end|>\n<|im_start|>", specials=specials)["content"].strip() == "Yes."
    assert kinds("<|eot_id|>Yes.", specials=("<|eot_id|>",)) == {"content": "Yes."}


def test_a_model_that_skips_thinking_has_an_answer() -> None:
    """Reasoning that the model ends with is content; cut off it is reasoning."""
    assert read(reader("tagged", tail=THINKING, early=False), ["Paris.\n"]) == [Piece("content", "Paris.")]
    assert read(reader("tagged", tail=THINKING, early=True), ["Paris.\n"]) == [
        Piece("reasoning", "Paris."), Piece("content", "Paris."),
    ]  # fmt: skip
    for reason in ("length", "cancelled"):
        for early in (True, False):
            assert read(reader("tagged", tail=THINKING, early=early), ["Paris."], reason) == [
                Piece("reasoning", "Paris.")
            ]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "weather", "arguments": {"text": Paris}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"count": NaN}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"count": 1e999}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"text": "\\ud800"}}\n</tool_call>',
        '<tool_call>\n{"name": ["weather"]}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"text": "Par',
        '<tool_call>{"name": "weather", "arguments": ' + '{"a":' * 300 + "1" + "}" * 301 + "</tool_call>",
        "The word <tool_call> in prose, and </tool_call> too.",
        "<tool_call></tool_call>", "<tool_call>\n", "<tool_call>{}</tool_call>", "</tool_call>", "a < b <t <too",
    ],
)  # fmt: skip
def test_what_is_no_call_is_content_as_it_was(text: str) -> None:
    assert "".join(piece.text for piece in read(reader("tagged", early=False), [text])) == text
    same_when_cut("tagged", text, rounds=20)


def test_the_end_of_json_is_found_by_its_brackets() -> None:
    for value in ("</tool_call>", "<tool_call>", "} ] {", 'a "quoted" \\', "\\\\", "<|im_end|>", "[/TOOL_CALLS]"):
        for style in ("tagged", "bare", "array", "named", "fenced", "separated", "counted", "requests", "channels"):
            found = read(reader(style), [WRITERS[style]([("weather", {"text": value})]) + " So."])
            assert calls_of(found) == [("weather", {"text": value})], style


def test_a_value_may_hold_the_mark_that_ends_it() -> None:
    for style, marks in {
        "functions": ["</parameter>", "</tool_call>", "</function>", "<parameter=x>"],
        "pairs": ["</arg_value>", "</tool_call>", "<arg_key>"],
        "dsml": ["</｜DSML｜function_calls>", "｜DSML｜", "<｜DSML｜invoke>"],
    }.items():
        for mark in marks:
            call = ("weather", {"text": f"a {mark} b", "count": 2})
            assert calls_of(read(reader(style), [WRITERS[style]([call])])) == [call], mark


def test_exactly_one_newline_at_each_end_of_a_value_is_the_formats() -> None:
    for value in ("\n\nx\n\n", " x ", "", "\n"):
        assert calls_of(read(reader("functions"), [WRITERS["functions"]([("weather", {"text": value})])])) == [
            ("weather", {"text": value})
        ]


@EITHER
def test_calls_are_repaired(early: bool) -> None:
    def arguments(text: str) -> str:
        return shown(read(reader("tagged", early=early), [f"<tool_call>\n{text}\n</tool_call>"]), "arguments")

    assert arguments('{"name": "now"}') == "{}"
    assert arguments('{"name": "now", "arguments": null}') == "{}"
    assert arguments('{"name": "now", "arguments": ""}') == "{}"
    assert arguments('{"name": "weather", "parameters": {"count": 1}}') == '{"count": 1}'
    assert arguments('{"arguments": {"count": 1}, "name": "weather"}') == '{"count": 1}'
    assert arguments('{"name": "weather", "arguments": "{\\"count\\": 1}"}') == '{"count": 1}'
    assert (
        arguments('{"type": "function", "function": {"name": "weather", "arguments": {"count": 1}}}') == '{"count": 1}'
    )


def test_calls_without_a_closing_mark_count() -> None:
    """It may be what generation stops at."""
    assert kinds(CALL.removesuffix("</tool_call>")) == {"call": "weather", "arguments": '{"text": "Paris"}'}
    text = WRITERS["quoted"]([("weather", {"text": "Paris"})]).removesuffix("<tool_call|>")
    assert kinds(text, style="quoted") == {"call": "weather", "arguments": '{"text": "Paris"}'}
    assert set(kinds(text, style="quoted", reason="length")) == {"content"}


def test_two_calls_in_one_piece_are_two() -> None:
    pieces = reader("tagged").push(f"{CALL}\n{CALL}")
    assert [piece.index for piece in pieces if piece.kind == "call"] == [0, 1]
    assert len({piece.id for piece in pieces if piece.kind == "call"}) == 2


def test_an_answer_that_is_json_is_content() -> None:
    for style in ("bare", "python"):
        for text in ('{"name": "Bob", "age": 3}', '{"title": "x"}', "[1, 2]", "[weather]", "[a link](http://x)", "{"):
            assert kinds(text, style=style) == {"content": text}


def test_what_cannot_become_a_call_is_not_held_back() -> None:
    """An answer in JSON, or code, comes as it is written."""
    for style, text in (
        ("bare", '{"title": "a'),
        ("bare", "{ a"),
        ("python", "[1, "),
        ("tagged", '<tool_call>{"x": 1'),
    ):
        assert "".join(piece.text for piece in reader(style).push(text + " b")) == text + " b"


def test_only_the_longest_beginning_of_a_mark_is_held_back() -> None:
    made = reader("tagged")
    assert made.push("a <tool") == [Piece("content", "a")]
    assert made.push("box> b") == [Piece("content", " <toolbox> b")]


def test_thinking_is_a_mark_at_the_beginning_only() -> None:
    text = "The <think> tag opens reasoning, </think> closes it."
    assert kinds(text) == {"content": text}


def test_a_message_to_nobody_is_content() -> None:
    tail = "<|start|>assistant"
    assert kinds("Hello.", tail, "channels") == {"content": "Hello."}
    assert kinds("Hello. " * 60, tail, "channels")["content"].startswith("Hello. Hello.")
    assert kinds("<|channel|>fin", tail, "channels") == {}
    text = '<|channel|>commentary to=browser.open<|message|>{"id": 1}'
    assert kinds(text, tail, "channels") == {"content": text}


def test_styles_without_tools_have_no_calls() -> None:
    assert not styles["none"].body
    assert read(Reader(style_of(None), "", TOOLS), [CALL]) == [Piece("content", CALL)]
