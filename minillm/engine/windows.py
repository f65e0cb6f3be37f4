"""A long text in windows that a model can read: where each begins and ends, and which of its tokens it predicts."""

from __future__ import annotations

from minillm import spec

MAX_CONTEXT = 2048  # of a window, where nobody asks for another


def sizes(decoder: spec.Decoder, context: int | None, stride: int | None) -> tuple[int, int]:
    """The window and its step, where None asks for the usual. Raises ValueError where they cannot be."""
    context = min(decoder.context, MAX_CONTEXT) if context is None else context
    stride = max(context // 2, 1) if stride is None else stride
    if not 1 <= context <= decoder.context:
        raise ValueError(f"--context is {context}, this model takes from 1 to {decoder.context}")
    if not 1 <= stride <= context:
        raise ValueError(f"--stride is {stride}, it must be from 1 to the context of {context}")
    return context, stride


def windows(count: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """Windows over `count` tokens as (first, last, predictions): tokens first … last - 1 are read, and the last so many
    of the tokens first + 1 … last are predicted."""
    found, done = [], 0
    for first in range(0, count - 1, stride):
        last = min(first + context, count - 1)
        found.append((first, last, last - done))
        done = last
        if last == count - 1:
            break
    return found
