"""Guesses out of the text itself: what followed its end before."""

from __future__ import annotations

import pytest

from minillm.engine.batching.proposers import NGrams


@pytest.mark.parametrize(
    ("text", "longest", "count", "expected"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 3, 2, [9, 1]),  # what followed 1 2 3
        ([1, 2, 9, 3, 2, 8, 1, 2], 2, 2, [9, 3]),  # 1 2 is longer than the later 2
        ([1, 2, 9, 3, 2, 8, 1, 2], 1, 3, [8, 1, 2]),  # the later 2
        ([7, 5, 5], 2, 4, [5, 5, 5, 5]),  # a text that repeats itself goes on to
        ([1, 2, 1, 2], 2, 5, [1, 2, 1, 2, 1]),
        ([1, 2, 3], 3, 4, []),
        ([1], 3, 4, []),
    ],
)
def test_what_followed_before(text: list[int], longest: int, count: int, expected: list[int]) -> None:
    """The whole text at once, and token by token as it grows."""
    grown = NGrams(longest)
    for end in range(1, len(text)):
        grown.following(text[:end], count)
    assert grown.following(text, count) == expected
    assert NGrams(longest).following(text, count) == expected
