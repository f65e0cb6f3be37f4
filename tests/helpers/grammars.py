"""Grammars of answers, walked through by random tokens or by a text."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from minillm.serve.answers import Reader, styles
from minillm.serve.answers.grammar import compiled
from minillm.text.tokenizer import Tokenizer
from tests.helpers.answers import TAILS, calls_of, read, shown
from tests.helpers.schemas import GOOD

WRITTEN = sorted(name for name, style in styles.items() if style.form)
TEXTUAL = sorted(
    name for name, style in styles.items() if style.form and style.form.item and style.form.quote != "JSON"
)
NO_LISTS = ("quoted", "escaped")  # whose lists and objects are not JSON
ONE = [("weather", {"city": "Oslo", "days": 3})]
THINKING = "<|im_start|>assistant\n<think>\n"


def tools(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": GOOD[name]}} for name in names or GOOD]


def marks() -> list[str]:
    found = {mark for row in styles.values() for mark in (*row.opens, *row.closes, *row.drops) if mark[0] in "<["}
    found |= {mark for row in styles.values() for each in row.thinking for mark in (each.opens, each.closes)}
    found |= {"<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<｜tool▁sep｜>"}
    found |= {"<|begin|>", "<|tool_call:name|>", "<|tool_call:args|>", "<|channel>"}
    return sorted(found - {"<|channel>thought\n", "<|begin|>assistant"})


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


def through(tokenizer: Tokenizer, made: Any, text: str) -> bool:
    """Whether a text may be written, and may end there."""
    ids = tokenizer.encode(text, special=False)
    if made.allowed(ids) < len(ids):
        return False
    for token in ids:
        made.advance(token)
    return tokenizer.eos_id in allowed(made, tokenizer.backend.size)
