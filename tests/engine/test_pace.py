"""How long pieces of prompts are beside requests that are being decoded."""

import pytest

import minillm
from minillm.engine.batching.engine import Engine
from minillm.engine.batching.pace import Pace

MOST, LEAST = 512, 16
DECODED = [(object(), 1)] * 8


def paced(*passes, waiting=0.0):
    """What is read next under 0.2 s, after passes of 8 decoded tokens or none, and so many of a prompt."""
    pace = Pace(0.2)
    for decoded, read, seconds in passes:
        pace.saw(DECODED[:decoded] + [(object(), read)] * (read > 0), seconds)
    return pace.budget(MOST, LEAST, waiting)


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        pytest.param([], LEAST, id="nothing is known"),
        pytest.param([(8, 0, 0.08)], LEAST, id="no piece has been read yet"),
        pytest.param([(8, 0, 0.08), (8, 16, 0.12)], 48, id="0.12 s are left, 2.5 ms a token"),
        pytest.param([(8, 0, 0.06), (8, 16, 0.08), (8, 16, 0.12)], 74, id="the last pass counts for a quarter"),
        pytest.param([(8, 0, 0.3), (8, 16, 0.32)], LEAST, id="decoding alone takes longer"),
        pytest.param([(8, 0, 0.1), (8, 16, 0.1)], MOST, id="a piece costs nothing"),
        pytest.param([(0, 512, 0.512), (8, 0, 0.08)], LEAST, id="a prompt by itself says nothing of a piece"),
    ],
)
def test_a_piece_is_as_long_as_the_last_passes_allow(passes, expected):
    assert paced(*passes) == expected


@pytest.mark.parametrize(("waiting", "expected"), [(0.5, 48), (1.0, 48), (2.0, 128), (15.0, MOST)])
def test_a_few_wait_longer_where_many_would_wait_for_them(waiting, expected):
    assert paced((8, 0, 0.08), (8, 16, 0.12), waiting=waiting) == expected


def test_the_engine_counts_who_waits_for_each_that_is_decoded(monkeypatch):
    llm, seen = minillm.load(), []
    engine = Engine(llm.model, 256, 4, pace=1.0)
    monkeypatch.setattr(engine.pace, "budget", lambda most, least, waiting: seen.append(waiting) or least)
    engine.add(llm.completion(prompt_ids=[1, 2, 3], max_new_tokens=8))
    engine.step()
    for _ in range(3):
        engine.add(llm.completion(prompt_ids=[4] * 20, max_new_tokens=2))
    engine.step()
    assert seen[:2] == [1.0, 3.0]
