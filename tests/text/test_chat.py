"""Chat templates: published ones render as in transformers; hostile ones are refused."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

import minillm
from minillm.guard.jsonfile import read_json
from minillm.text.chat import ChatTemplate, find
from minillm.text.tokenizer import Tokenizer
from tests.conftest import SHARED, shared

CONVERSATIONS = {
    "one turn": [{"role": "user", "content": "Hello <b>there</b>"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "こんにちは"}],
    "history": [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def published() -> list[str]:
    found = []
    for path in sorted(SHARED.glob("real-configs/*/tokenizer_config.json")):
        if find(path.parent, read_json(path)) is not None:
            found.append(path.parent.name)
    return found


def special_tokens(config: dict) -> dict[str, str]:
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in config.items()}
    return {key: text for key, text in texts.items() if key.endswith("_token") and isinstance(text, str)}


@pytest.mark.parametrize("name", published())
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_published_templates_render_as_in_transformers(name: str, conversation: str, tools: list | None) -> None:
    folder = shared(f"real-configs/{name}")
    config = read_json(folder / "tokenizer_config.json")
    source, special = find(folder, config), special_tokens(config)
    assert source is not None
    messages = CONVERSATIONS[conversation]
    options = {"tools": tools, "add_generation_prompt": True}
    try:
        expected = render_jinja_template([messages], chat_template=source, **options, **special)[0][0]
    except Exception:  # what transformers lets through of a template's refusal
        with pytest.raises(ValueError, match="chat template refuses"):
            ChatTemplate(source, special).render(messages, tools=tools)
        return
    assert ChatTemplate(source, special).render(messages, tools=tools) == expected


def test_the_given_material_has_templates() -> None:
    shared("real-configs")
    assert len(published()) >= 15


def test_special_variables() -> None:
    source = "{{ bos_token }}{{ strftime_now('%Y') }}{{ messages[0] | tojson }}{{ add_generation_prompt }}"
    rendered = ChatTemplate(source, {"bos_token": "<s>"}).render([{"role": "user", "content": "é<"}])
    assert rendered == f'<s>{datetime.date.today().year}{{"role": "user", "content": "é<"}}True'


def test_generation_blocks_are_transparent() -> None:
    source = "a\n{%- generation -%}\n b {% endgeneration %}c"
    assert ChatTemplate(source, {}).render([]) == "ab c"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages.__class__.__mro__ }}", "unsafe|undefined"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe|undefined"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("{{ 'a' * 10 ** 9 }}", "512 MB"),
        ("{{ 'a' * 20000000 }}", "more than 8000000 characters"),
        (
            "{% set n = namespace(x='abcdefgh') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "512 MB",
        ),
        (
            "{% set n = namespace(x='aa') %}{% for i in range(9) %}{% set n.x = n.x|replace('a', n.x) %}{% endfor %}",
            "MB",
        ),
        ("{{ 'a'|center(4000000000) }}", "512 MB"),
        ("{{ '%04000000000d' % 1 }}", "512 MB"),
        ("{{ [[1]]|tojson(indent=10 ** 9) }}", "512 MB"),
        ("{{ 'a\nb'|indent(10 ** 9) }}", "512 MB"),
        ("{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(0) }}", "recursion"),
        ("{% for i in range(99999999) %}x{% endfor %}", "Range too big"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content.nothing.more }}", "nothing"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_hostile_templates_are_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(source, {}).render([{"role": "user", "content": "hi"}])


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillm.text.chat.MAX_OUTPUT_CHARS", 1000)
    source = "{% for i in range(1000) %}{% for j in range(1000) %}xy{% endfor %}{% endfor %}"
    with pytest.raises(ValueError, match="more than 1000 characters"):
        ChatTemplate(source, {}).render([])


NESTED = "{% for i in [1] %}" * 40 + "{% endfor %}" * 40


@pytest.mark.parametrize("source", ["{% if %}", "{{ open", "x" * 1_000_001, NESTED], ids=["if", "open", "long", "deep"])
def test_templates_that_do_not_compile(source: str) -> None:
    with pytest.raises(ValueError, match="template"):
        ChatTemplate(source, {})


def test_where_a_template_is_found(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    assert find(tmp_path, {}) is None
    assert find(tmp_path, {"chat_template": "S"}) == "S"
    assert find(tmp_path, {"chat_template": named}) == "D"
    assert find(tmp_path, {"chat_template": named}, tools=True) == "T"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert find(tmp_path, {"chat_template": "S"}) == "J"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert find(tmp_path, {"chat_template": "S"}) == "F"


@pytest.mark.parametrize("template", [[1], [None], [{"name": [1], "template": "a"}], [{"template": "a"}]])
def test_a_list_without_a_default_template_has_none(tmp_path: Path, template: object) -> None:
    assert find(tmp_path, {"chat_template": template}) is None


@pytest.mark.parametrize("template", [3, {"a": 1}, [{"name": "default", "template": 3}]])
def test_a_template_that_is_no_text(tmp_path: Path, template: object) -> None:
    with pytest.raises(ValueError, match="expected text"):
        find(tmp_path, {"chat_template": template})


def test_arithmetic_of_templates_still_works() -> None:
    source = (
        "{{ 3 * 4 + 2 ** 5 }}{{ 'ab' * 2 + 'c' }}{{ '%s-%d' % ('x', 5) }}{{ [1] + [2] }}{{ 10 % 3 }}{{ 1.5 * 2000000 }}"
    )
    assert ChatTemplate(source, {}).render([]) == "44ababcx-5[1, 2]13000000.0"


def test_whitespace_around_blocks_is_trimmed() -> None:
    """As transformers does: the line of a block leaves nothing, neither its indent nor its end."""
    source = "a\n  {% if true %}\n  b\n  {% endif %}\nc"
    assert ChatTemplate(source, {}).render([]) == "a\n  b\nc"


def test_template_variables_reach_the_template() -> None:
    messages = [{"role": "user", "content": "x"}]
    assert ChatTemplate("{{ enable_thinking }}", {}).render(messages, variables={"enable_thinking": False}) == "False"
    assert (
        ChatTemplate("{{ add_generation_prompt }}", {}).render(messages, variables={"add_generation_prompt": 0}) == "0"
    )
    for name in ("messages", "tools", "self"):
        with pytest.raises(ValueError, match=f"may not be named {name}"):
            ChatTemplate("x", {}).render(messages, variables={name: 1})


def test_a_chat_prompt_has_one_bos() -> None:
    llm = minillm.load()
    assert isinstance(llm.tokenizer, Tokenizer)
    ids = llm.chat_prompt([{"role": "user", "content": "Tell me a story about a fox named Pip and a drum."}])
    assert ids[0] == llm.tokenizer.bos_id
    assert ids.count(llm.tokenizer.bos_id) == 1


def test_the_templates_own_words_reach_the_caller() -> None:
    with pytest.raises(ValueError, match="this model knows the roles user and assistant, not system"):
        minillm.load().generate(messages=[{"role": "system", "content": "x"}])
