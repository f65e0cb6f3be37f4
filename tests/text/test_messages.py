"""What is done to messages before a template sees them: compared with transformers' apply_chat_template."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from typing import Any

import numpy as np
import pytest
import transformers

from minillm.hub import DEMO
from minillm.text import messages as forms
from minillm.text.chat import ChatTemplate

THEIRS = transformers.PreTrainedTokenizerFast.from_pretrained(DEMO)

CALLS = (
    "{% for m in messages %}<{{ m.role }}>{% if 'tool_calls' in m %}{% for c in m.tool_calls %}[{{ c.function.name }}]"
    "{% endfor %}{% endif %}{% if 'content' in m %}{{ m.content }}{% endif %}{% endfor %}"
)
DUMPED = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
LENGTHS = "{% for m in messages %}{% if 'tool_calls' in m and m.tool_calls | length > 0 %}T{% endif %}{% endfor %}"
REASONING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content | default('') }}|{{ m.thinking | default('') }}"
    "|{{ m.reasoning | default('') }}{% endfor %}"
)
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}, "id": None}


class Kind(str, enum.Enum):
    USER = "user"


@dataclasses.dataclass
class Turn:
    role: str
    content: Any = None
    tool_calls: Any = None


class Model:
    """Looks like pydantic's."""

    def model_dump(self) -> dict[str, Any]:
        return {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None}


CONVERSATIONS: dict[str, list[Any]] = {
    "of the OpenAI client": [
        {"role": "user", "content": "hi", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "function_call": None},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "one", "tool_calls": None},
        {"role": "user", "content": "ok"},
    ],
    "null inside": [{"role": "user", "content": "a", "extra": {"x": None, "y": [None]}}],
    "reasoning": [{"role": "assistant", "content": "a", "reasoning": "why"}, {"role": "user", "content": "b"}],
    "thinking": [{"role": "assistant", "content": "a", "thinking": "why"}, {"role": "user", "content": "b"}],
    "both": [
        {"role": "assistant", "content": "a", "thinking": "t", "reasoning_content": "r"},
        {"role": "user", "content": "b"},
    ],
    "null reasoning": [{"role": "user", "content": "a", "reasoning_content": None, "thinking": "t"}],
    "numbers": [{"role": Kind.USER, "content": "a", "n": np.float32(1.5), "b": np.bool_(False), "t": (1, True, 2.5)}],
    "an array": [{"role": "user", "content": "a", "image": np.zeros(3)}],
}


@pytest.mark.parametrize("source", [CALLS, DUMPED, LENGTHS, REASONING], ids=["calls", "dumped", "lengths", "reasoning"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_templates_see_messages_as_in_transformers(source: str, name: str) -> None:
    conversation = CONVERSATIONS[name]
    expected = THEIRS.apply_chat_template(conversation, chat_template=source, tokenize=False)
    assert ChatTemplate(source, {}).render(conversation) == expected


def test_objects_are_messages_too() -> None:
    """A reply of a client goes back into the conversation as it came."""
    conversation = [Turn("user", "hi"), Model(), Turn("tool", "1")]
    plain = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "1"},
    ]
    for source in (CALLS, DUMPED):
        expected = THEIRS.apply_chat_template(plain, chat_template=source, tokenize=False)
        assert ChatTemplate(source, {}).render(conversation) == expected  # type: ignore[arg-type]


def test_a_template_that_asks_for_null_gets_it() -> None:
    source = (
        "{% for m in messages %}{% if m.content is none %}-{% elif m.content is defined %}{{ m.content }}"
        "{% else %}{{ raise_exception('no content') }}{% endif %}{% endfor %}"
    )
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    assert ChatTemplate(source, {}).render(conversation) == "a-"
    with pytest.raises(ValueError, match="no content"):
        ChatTemplate(source, {}).render([{"role": "user"}])


@pytest.mark.parametrize("odd", ["hello", 3, None, ["role", "user"]])
def test_what_is_no_message_is_refused(odd: Any) -> None:
    with pytest.raises(ValueError, match=r"messages\[1\] is"):
        ChatTemplate("x", {}).render([{"role": "user", "content": "a"}, odd])


def test_messages_that_hold_themselves_are_refused() -> None:
    message: dict[str, Any] = {"role": "user"}
    message["content"] = [message]
    with pytest.raises(ValueError, match="nested too deeply, or hold themselves"):
        ChatTemplate("{{ messages }}", {}).render([message])


def test_null_does_not_reach_a_template_that_refuses_its_lack() -> None:
    source = "{% for m in messages %}{% if m.content is not defined %}{{ raise_exception('no content') }}{% endif %}"
    with pytest.raises(ValueError, match="no content"):
        ChatTemplate(source + "{{ m.content }}{% endfor %}", {}).render([{"role": "assistant", "content": None}])


def test_a_tool_that_is_no_schema_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tools\[0\] is <function>, expected its JSON schema"):
        ChatTemplate("{{ tools }}", {}).render([{"role": "user", "content": "a"}], tools=[lambda x: x])


PARTS = [{"type": "text", "text": " one"}, {"type": "text", "text": "two "}]
IMAGE = {"type": "image", "image": "x.png"}
WANT_TEXT = {
    "plain": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    "trimmed": "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{% endfor %}",
    "dropping": "{% for m in messages %}<{{ m.role }}>"
    "{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}",
    "adding": "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}",
    "dumping": "{% for m in messages %}<{{ m.role }}>{{ m.content | tojson }}{% endfor %}",
    "own refusal": "{% for m in messages %}{% if m.content is not string %}{{ raise_exception('text!') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}",
}
READ_LISTS = {
    "both": "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% else %}<img>{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}",
    "another line": "{% for m in messages %}<{{ m.role }}>"
    "{% if m.content is string %}{{ m.content }}{{ '\n' }}{% else %}"
    "{% for p in m.content %}{{ p.text | default('<img>') }}{% endfor %}{% endif %}{% endfor %}",
    "lists only": "{% for m in messages %}<{{ m.role }}>"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}"
    "{{ p.text }}{% endfor %}{% endfor %}",
    "lists or refusal": "{% for m in messages %}{% if m.content is string %}{{ raise_exception('parts!') }}{% endif %}"
    "<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("name", WANT_TEXT)
def test_parts_become_one_text_for_a_template_that_wants_text(name: str) -> None:
    """What transformers renders of the text itself, parts joined by a newline as vLLM joins them."""
    source = WANT_TEXT[name]
    for role in ("user", "tool"):
        given = [{"role": "system", "content": "S"}, {"role": role, "content": PARTS}]
        text = [given[0], {"role": role, "content": " one\ntwo "}]
        expected = THEIRS.apply_chat_template(text, chat_template=source, tokenize=False)
        assert ChatTemplate(source, {}).render(given) == expected
    for parts in ([*PARTS, IMAGE], [{"type": "text"}], [{"type": "text", "text": 3}], [7]):
        with pytest.raises(ValueError, match=r"messages\[0\] has content of type '\w+'; the chat template"):
            ChatTemplate(source, {}).render([{"role": "user", "content": parts}])


@pytest.mark.parametrize("name", READ_LISTS)
def test_a_template_that_reads_lists_gets_them(name: str) -> None:
    source = READ_LISTS[name]
    for parts in (PARTS, [IMAGE, *PARTS]):
        conversation = [{"role": "system", "content": PARTS}, {"role": "user", "content": parts}]
        expected = THEIRS.apply_chat_template(conversation, chat_template=source, tokenize=False)
        assert ChatTemplate(source, {}).render(conversation) == expected
        assert "one" in expected
        assert "type" not in expected


def test_a_role_by_itself_may_want_text() -> None:
    """Vision templates read the user's parts and take the system message for a text."""
    source = "{{ messages[0].content }}" + READ_LISTS["both"].replace("in messages", "in messages[1:]")
    given = [{"role": "system", "content": PARTS}, {"role": "user", "content": [*PARTS, IMAGE]}]
    assert ChatTemplate(source, {}).render(given) == " one\ntwo <user> onetwo <img>"


HEADERS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
HEADERS += "{% if add_generation_prompt %}A{% endif %}"
CONTINUED = {
    "plain": HEADERS,
    "trimming": HEADERS.replace("m.content", "m.content | trim"),
    "adding": "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}",
    "last apart": "{% for m in messages %}{{ m.content }}{{ '</s>' if loop.last else '<end>' }}{% endfor %}",
    "nothing behind": "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\n' if not loop.last }}{% endfor %}",
    "reading lists": READ_LISTS["both"],
    "tail": HEADERS + "<|tail|>",
    "flag first": "{{ add_generation_prompt }}" + HEADERS,
}
BEGUN = ["Sure, ", "Sure,", " Sure \n", "{", "a<|end|>b", ""]


@pytest.mark.parametrize(("name", "begun"), list(itertools.product(CONTINUED, BEGUN)))
def test_a_last_message_is_continued_as_in_transformers(name: str, begun: str) -> None:
    source = CONTINUED[name]
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": begun}]
    options: dict[str, Any] = {"chat_template": source, "tokenize": False}
    expected = THEIRS.apply_chat_template(conversation, **options, continue_final_message=True)
    template = ChatTemplate(source, THEIRS.special_tokens_map)
    assert template.render(conversation) == expected  # by itself, as transformers' pipeline does
    assert template.render(conversation, continue_final_message=True) == expected
    closed = THEIRS.apply_chat_template(conversation, **options, add_generation_prompt=True)
    assert template.render(conversation, continue_final_message=False) == closed
    whole = THEIRS.apply_chat_template(conversation, **options)
    assert template.render(conversation, add_generation_prompt=False) == whole
    user = conversation[:1]
    expected = THEIRS.apply_chat_template(user, **options, continue_final_message=True)
    assert template.render(user, continue_final_message=True) == expected


def test_parts_are_continued_too() -> None:
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": PARTS}]
    source = READ_LISTS["both"]
    expected = THEIRS.apply_chat_template(
        conversation, chat_template=source, tokenize=False, continue_final_message=True
    )
    assert ChatTemplate(source, {}).render(conversation) == expected == "<user>hi<assistant> onetwo "
    assert ChatTemplate(HEADERS, {}).render(conversation).endswith("<|assistant|>\n one\ntwo ")


def test_what_cannot_be_continued() -> None:
    user, call = {"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}
    said = {**call, "content": "wait"}
    source = CALLS + "</s>"
    assert ChatTemplate(source, {}).render([user, said]) == "<user>hi<assistant>[f]wait</s>"  # a call is complete
    with pytest.raises(ValueError, match="no text to go on with"):
        ChatTemplate(CALLS, {}).render([user, call], continue_final_message=True)
    for source in ("{{ messages[0].content }}", "{{ messages[0].content }}{{ messages[1].content[1:] }}"):
        with pytest.raises(ValueError, match="leaves the last message out or changes it"):
            ChatTemplate(source, {}).render([user, {"role": "assistant", "content": "xyz"}])
    with pytest.raises(ValueError, match="conversation is empty"):
        ChatTemplate(HEADERS, {}).render([], continue_final_message=True)


def test_the_callers_messages_stay_as_they_are() -> None:
    conversation = [{"role": "user", "content": [*PARTS], "x": None}, {"role": "assistant", "content": "So"}]
    before = [{**message} for message in conversation]
    ChatTemplate(HEADERS, {}).render(conversation)
    assert conversation == before
    assert forms.read(conversation) == before
