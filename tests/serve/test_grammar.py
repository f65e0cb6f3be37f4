"""Grammars of answers: whatever they let through is right, and what is right they let through."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.hub import DEMO
from minillm.serve.answers import Reader, styles
from minillm.serve.answers.grammar import compiled
from minillm.serve.answers.guides import KEPT, vocabulary
from minillm.text.tokenizer import Tokenizer
from tests.helpers.answers import TAILS, WRITERS, calls_of, read, shown
from tests.helpers.schemas import GOOD, HOSTILE, REFUSED, fits

WRITTEN = sorted(name for name, style in styles.items() if style.form)
TEXTUAL = sorted(
    name for name, style in styles.items() if style.form and style.form.item and style.form.quote != "JSON"
)
NO_LISTS = ("quoted", "escaped")  # whose lists and objects are not JSON
THINKING = "<|im_start|>assistant\n<think>\n"


def tools(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": GOOD[name]}} for name in names or GOOD]


def marks() -> list[str]:
    found = {mark for row in styles.values() for mark in (*row.opens, *row.closes, *row.drops) if mark[0] in "<["}
    found |= {mark for row in styles.values() for each in row.thinking for mark in (each.opens, each.closes)}
    found |= {"<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<｜tool▁sep｜>"}
    found |= {"<|begin|>", "<|tool_call:name|>", "<|tool_call:args|>", "<|channel>"}
    return sorted(found - {"<|channel>thought\n", "<|begin|>assistant"})


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """The demo's, for which marks are text, and the same with special tokens for all marks."""
    folder = tmp_path_factory.mktemp("special")
    shutil.copy(DEMO / "tokenizer_config.json", folder)
    content = json.loads((DEMO / "tokenizer.json").read_text())
    plain = Tokenizer(DEMO)
    for at, mark in enumerate(marks()):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].append({"id": plain.backend.size + at, "content": mark, "special": True, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return {"text": plain, "special": Tokenizer(folder)}


KINDS = pytest.mark.parametrize("kind", ["text", "special"])
STYLES = pytest.mark.parametrize("style", WRITTEN)


def guide(tokenizer: Tokenizer, style: str, choice: str = "required", **how: Any) -> Any:
    named = [name for name in GOOD if style not in NO_LISTS or name != "paint"]
    given = {
        "tools": tools(*named),
        "parallel": True,
        "response_format": None,
        "prompt_tail": TAILS.get(style, ""),
        **how,
    }
    return compiled(tokenizer, styles[style], tool_choice=choice, **given)


def allowed(made: Any, size: int) -> list[int]:
    mask = np.full((size + 31) // 32 + 3, -1, dtype=np.int32)
    made.fill(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[size:].any()
    return np.flatnonzero(bits).tolist()


def walked(tokenizer: Tokenizer, made: Any, seed: int, most: int = 400) -> str | None:
    """A random text that a guide lets through, special tokens in it; None where it has not ended in time. Tokens that
    lead out of strings and blanks are taken more often, so that most end."""
    draw, ids = random.Random(seed), []
    names = [tokenizer.decode([token], skip_special=False) for token in range(tokenizer.backend.size)]
    for _ in range(most):
        choices = allowed(made, tokenizer.backend.size)
        assert choices
        if tokenizer.eos_id in choices and draw.random() < 0.4:
            return tokenizer.decode(ids, skip_special=False)
        ends = [token for token in choices if names[token][:1] in ('"', "}", "]", "<")] if draw.random() < 0.4 else []
        token = draw.choice(ends or [each for each in choices if each != tokenizer.eos_id] or choices)
        if token == tokenizer.eos_id:
            return tokenizer.decode(ids, skip_special=False)
        made.advance(token)
        ids.append(token)
    return None


def calls(style: str, text: str, tail: str = "") -> list[Any]:
    schemas = {**GOOD}
    found = read(Reader(styles[style], tail or TAILS.get(style, ""), schemas, early=False), [text])
    assert not shown(found, "content").strip(), text
    return calls_of(found)


@KINDS
@STYLES
def test_required_calls_are_calls(tokenizers: dict[str, Tokenizer], style: str, kind: str) -> None:
    """Whatever a guide lets through is read as calls of known tools, with arguments that fit."""
    tail = TAILS.get(style, THINKING + "\n</think>\n\n")
    found = [walked(tokenizers[kind], guide(tokenizers[kind], style, prompt_tail=tail), seed) for seed in range(20)]
    texts = [text for text in found if text is not None]
    assert len(texts) >= 3
    for text in texts:
        made = calls(style, text, tail)
        assert made, text
        for name, arguments in made:
            assert fits(arguments, GOOD[name]), text


def through(tokenizer: Tokenizer, made: Any, text: str) -> bool:
    """Whether a text may be written, and may end there."""
    ids = tokenizer.encode(text, special=False)
    if made.allowed(ids) < len(ids):
        return False
    for token in ids:
        made.advance(token)
    return tokenizer.eos_id in allowed(made, tokenizer.backend.size)


ONE = [("weather", {"city": "Oslo", "days": 3})]
TWO = [*ONE, ("now", {})]


@KINDS
@STYLES
def test_what_models_write_is_let_through(tokenizers: dict[str, Tokenizer], style: str, kind: str) -> None:
    tokenizer = tokenizers[kind]

    def may(calls: Any, choice: str = "required", **how: Any) -> bool:
        text = calls if isinstance(calls, str) else WRITERS[style](calls).removesuffix("<|call|>")
        return through(tokenizer, guide(tokenizer, style, choice, **how), text)

    several = style != "channels"  # whose calls are messages of their own
    assert may(ONE)
    assert may(TWO) is several
    assert may(ONE, parallel=False)
    assert not may(TWO, parallel=False)
    assert may(ONE, "weather")
    assert not may(ONE, "now")
    assert not may([("unknown", {})])
    assert not may([("weather", {"days": 3})])
    assert not may([("weather", {"city": "Oslo", "days": 8})])
    assert not may("Hello.")
    assert may(ONE, "auto")
    assert not may([("weather", {"city": "Oslo", "days": 8})], "auto")
    if several:
        assert may("Hello.", "auto")
        assert may("", "auto")
        assert may(TWO, "auto")
        assert not may(TWO, "auto", parallel=False)
        if not styles[style].bare:
            assert may("I will see.\n" + WRITERS[style](ONE), "auto")


def test_reasoning_stands_before_what_was_asked_for(tokenizers: dict[str, Tokenizer]) -> None:
    text = WRITERS["tagged"](ONE)
    for tokenizer in tokenizers.values():
        assert through(tokenizer, guide(tokenizer, "tagged"), f"<think>\nHm <b> {{.\n</think>\n\n{text}")
        assert through(tokenizer, guide(tokenizer, "tagged", prompt_tail=THINKING), f"Hm.\n</think>\n\n{text}")
        assert not through(tokenizer, guide(tokenizer, "tagged", prompt_tail=THINKING), text)
        done = THINKING + "\n</think>\n\n"
        assert not through(tokenizer, guide(tokenizer, "tagged", prompt_tail=done), f"<think>a</think>{text}")
        assert through(tokenizer, guide(tokenizer, "tagged", prompt_tail=done), text)
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": GOOD["weather"]}}
        made = guide(tokenizer, "tagged", "none", prompt_tail=THINKING, response_format=schema)
        assert through(tokenizer, made, 'Hm.</think>\n{"city": "Oslo"}')
        special = tokenizer is tokenizers["special"]
        channel = guide(tokenizer, "channels", "none", response_format=schema)
        analysis = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
        assert through(tokenizer, channel, analysis + '<|channel|>final<|message|>{"city": "Oslo"}'), special


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
