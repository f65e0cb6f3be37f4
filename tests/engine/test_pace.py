"""How long pieces of prompts are beside requests that are being decoded."""

import pytest

from minillm.engine.batching.pace import Pace

MOST, LEAST = 512, 16
DECODED = [(object(), 1)] * 8


def paced(*passes):
    """What is read next under 0.2 s, after passes of 8 decoded tokens or none, and so many of a prompt."""
    pace = Pace(0.2)
    for decoded, read, seconds in passes:
        pace.saw(DECODED[:decoded] + [(object(), read)] * (read > 0), seconds)
    return pace.budget(MOST, LEAST)


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
