"""Schemas in grammars: what fits is let through, what cannot be enforced is refused by name, all stays in bounds."""

from __future__ import annotations

import contextlib
import json
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from minillm.hub import DEMO
from minillm.serve.answers import styles
from minillm.serve.answers.grammar import compiled
from minillm.serve.answers.guides import KEPT, vocabulary
from minillm.text.tokenizer import Tokenizer
from tests.helpers.answers import WRITERS
from tests.helpers.grammars import (
    ONE,
    TEXTUAL,
    THINKING,
    WRITTEN,
    allowed,
    guide,
    through,
    tools,
    walked,
)
from tests.helpers.schemas import GOOD, HOSTILE, REFUSED, fits


@pytest.mark.parametrize("name", sorted(GOOD))
def test_json_by_a_schema_fits_it(tokenizers: dict[str, Tokenizer], name: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": name, "schema": GOOD[name], "strict": True}}
    tokenizer = tokenizers["text"]
    tail = THINKING + "</think>"
    for seed in range(10):
        made = guide(tokenizer, "none", "none", tools=[], response_format=schema, prompt_tail=tail)
        text = walked(tokenizer, made, seed)
        assert text is None or fits(json.loads(text), GOOD[name]), text
    for written in ('{"city":"Oslo"}', '{"city": "Oslo", "days": 2}', '{\n  "city": "Oslo",\n  "days": 2\n}'):
        made = guide(tokenizer, "none", "none", tools=[], response_format=schema, prompt_tail=tail)
        assert through(tokenizer, made, written) is (name == "weather")


def test_json_objects_are_objects(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["text"]

    def made() -> Any:
        return guide(tokenizer, "none", "none", tools=[], response_format={"type": "json_object"})

    for seed in range(10):
        text = walked(tokenizer, made(), seed)
        assert text is None or isinstance(json.loads(text.rpartition("</think>")[2]), dict)
    assert through(tokenizer, made(), '{"a": [1, {"b": null}]}')
    assert not through(tokenizer, made(), "[1]")
    assert through(tokenizer, made(), "{" + " " * 10 + "}")
    assert not through(tokenizer, made(), "{" + " " * 40 + "}")


def test_tools_and_a_format_leave_the_choice(tokenizers: dict[str, Tokenizer]) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": GOOD["weather"]}}
    for text, right in ((WRITERS["tagged"](ONE), True), ('{"city": "Oslo"}', True), ("Hello.", False)):
        made = guide(tokenizers["text"], "tagged", "auto", response_format=schema)
        assert through(tokenizers["text"], made, text) is right


def test_nothing_asked_for_is_no_guide(tokenizers: dict[str, Tokenizer]) -> None:
    assert guide(tokenizers["text"], "tagged", "none") is None
    assert guide(tokenizers["text"], "none", "auto", tools=[], response_format={"type": "text"}) is None


def test_tokens_can_be_drafted_and_taken_back(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer, made = tokenizers["text"], guide(tokenizers["text"], "tagged")
    ids = tokenizer.encode(WRITERS["tagged"](ONE), special=False)
    before = allowed(made, tokenizer.backend.size)
    assert made.allowed([*ids[:5], tokenizer.encode("~", special=False)[0]]) == 5
    for token in ids[:5]:
        made.advance(token)
    made.rewind(5)
    made.rewind(0)
    assert allowed(made, tokenizer.backend.size) == before
    assert made.allowed(ids) == len(ids)
    with pytest.raises(ValueError, match="may not come here"):
        made.advance(ids[3])
    assert allowed(guide(tokenizer, "tagged"), tokenizer.backend.size) == before  # another one of the same grammar


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_enforced_is_refused_by_name(tokenizers: dict[str, Tokenizer], name: str) -> None:
    schema, word = REFUSED[name]
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(ValueError, match=f"response_format.*{word}") as caught:
        guide(tokenizers["text"], "none", "none", tools=[], response_format=wanted)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    if name not in ("contradiction", "false"):  # a parameter that cannot be is one that is left out
        tool = [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}},
            }
        ]
        with pytest.raises(ValueError, match="parameters of f"):
            guide(tokenizers["text"], "tagged", tools=tool)


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_schemas_stay_in_bounds(tokenizers: dict[str, Tokenizer], name: str) -> None:
    """Refused, or compiled; in seconds of this process, and in memory."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": HOSTILE[name]}}
    with contextlib.suppress(ValueError):
        made = guide(tokenizers["text"], "none", "none", tools=[], response_format=wanted)
        walked(tokenizers["text"], made, 0, most=20)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 30
    assert after.ru_maxrss - before.ru_maxrss < 1_000_000  # KiB


@pytest.mark.parametrize("style", sorted(set(styles) - set(WRITTEN)))
def test_a_format_without_a_grammar_is_named(tokenizers: dict[str, Tokenizer], style: str) -> None:
    with pytest.raises(ValueError, match=f"format '{style}' have no grammar"):
        guide(tokenizers["text"], style)


@pytest.mark.parametrize("style", TEXTUAL)
def test_a_parameter_that_text_cannot_say_is_named(tokenizers: dict[str, Tokenizer], style: str) -> None:
    tool = tools("weather")
    tool[0]["function"]["parameters"] = {"type": "object", "properties": {"odd": {"type": ["string", "integer"]}}}
    with pytest.raises(ValueError, match="'odd' has no grammar"):
        guide(tokenizers["text"], style, tools=tool)


def test_other_refusals(tokenizers: dict[str, Tokenizer]) -> None:
    def refused(match: str, *args: Any, **how: Any) -> None:
        with pytest.raises(ValueError, match=match):
            guide(tokenizers["text"], "tagged", *args, **how)

    refused("no tool to call", "missing")
    refused("no tool to call", "required", tools=[])
    refused("has no schema", "none", response_format={"type": "json_schema", "json_schema": {"name": "x"}})
    refused("expected text, json_object or json_schema", "none", response_format={"type": "xml"})
    with pytest.raises(ValueError, match="the model has none"):
        compiled(None, styles["none"], [], "none", True, {"type": "json_object"}, "")


def test_grammars_are_kept_within_a_bound(tokenizers: dict[str, Tokenizer]) -> None:
    words = vocabulary(tokenizers["text"], ())
    for at in range(KEPT + 5):
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": at}}}
        guide(tokenizers["text"], "none", "none", tools=[], response_format=schema)
    assert len(words._kept) == KEPT


def test_threads_share_a_vocabulary(tokenizers: dict[str, Tokenizer]) -> None:
    """Guides made at the same time walk alone."""
    fresh, found = Tokenizer(DEMO), []

    def make(seed: int) -> None:
        found.append((seed, walked(fresh, guide(fresh, "tagged"), seed)))

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(found) == {seed: walked(fresh, guide(fresh, "tagged"), seed) for seed in range(6)}


def test_a_tokenizer_of_sentencepiece_is_refused(tmp_path: Path) -> None:
    class Bare:
        eos_id = 2
        backend = object()

    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        compiled(Bare(), styles["none"], [], "none", True, {"type": "json_object"}, "")  # type: ignore[arg-type]
