"""Grammars of answers: whatever they let through is right, and what is right they let through."""

from __future__ import annotations

from typing import Any

from minillm.serve.answers import styles
from minillm.text.tokenizer import Tokenizer
from tests.helpers.answers import TAILS, WRITERS
from tests.helpers.grammars import (
    KINDS,
    ONE,
    STYLES,
    THINKING,
    calls,
    guide,
    through,
    walked,
)
from tests.helpers.schemas import GOOD, fits


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
