"""Patterns of strangers: those that are let through take no time with any name."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.guard import patterns

NAMES = ["a" * 60, "a." * 30, ".".join(["model.layers.12.mlp.experts.3", "a" * 30])]
PLAIN = [
    r".*\.layers\.(\d+)\.mlp\.(gate|up|down)_proj",
    r"model\.layers\.[0-9]{1,3}\.self_attn\.q_proj",
    "|".join(f"layers.{i}.mlp.down_proj" for i in range(80)),
    "(q|k|v)_proj", ".*gate_up_proj", "", "q_proj$", r"(?!.*vision).*\.q_proj", "(?i:Q_PROJ)",
]  # fmt: skip
ITEMS = st.recursive(
    st.sampled_from(["a", ".", "[ab]", r"\.", "(a|b)", "aa"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2,9}", "{3}"])).map("(?:{0[0]}){0[1]}".format),
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: f"(?:{'|'.join(each)})"),
    ),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("pattern", PLAIN)
def test_what_people_write_is_let_through(pattern: str) -> None:
    patterns.check("x", [pattern])


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|aa)*", "(a*)*b", "((a?){9}){9}", "(.*)(.*)(.*)(.*)x", "(?=(a+)+)b"])
def test_what_could_take_for_ever_is_not(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"x has .*, which could take for ever to match; name the modules instead"):
        patterns.check("x", [pattern])


@settings(max_examples=200)
@given(ITEMS)
def test_a_pattern_that_is_let_through_soon_ends(pattern: str) -> None:
    """The others would not have ended by now: those that are let through were seen to take 0.04 s at most."""
    try:
        patterns.check("x", [pattern])
    except ValueError:
        return
    made, before = re.compile(rf"(.*\.)?({pattern})$"), time.process_time()
    for name in NAMES:
        made.match(f"{name}!")
    assert time.process_time() - before < 5


def test_all_of_a_file_count_together() -> None:
    patterns.check("x", ["(.*)a(.*)"] * 100)
    with pytest.raises(ValueError, match="take for ever"):
        patterns.check("x", ["(.*)a(.*)"] * 200)
