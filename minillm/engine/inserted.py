"""What stands in a prompt in place of the embeddings of its tokens: what a tower made of pictures and sounds.

It belongs to the prompt alone: a placeholder that the model writes itself is a token like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """The positions first … last - 1 of a prompt that one picture or sound fills, and the SHA-256 of what it is."""

    first: int
    last: int
    digest: bytes


@dataclass(frozen=True, eq=False)
class Inserted:
    """Embeddings `[n, E]` at the positions `at`, int64 `[n]`, in order; `deep`, `[n, E]` each, are added behind the
    first layers of the decoder. `places`: the coordinate that turns each rotary pair of each position of the
    prompt, int64 `[T, P]`; every later position is turned as the one `shift` behind it. `joint`: the positions of a
    span see each other both ways, if `windowed` in layers with a window alone. `told_as`: see `Media`."""

    at: Tensor
    embeddings: Tensor
    spans: tuple[Span, ...]
    deep: tuple[Tensor, ...] = ()
    places: Tensor | None = None
    shift: int = 0
    joint: bool = False
    windowed: bool = False
    told_as: int | None = None

    @cached_property
    def digest(self) -> bytes:
        """What tells it from other pictures at the same places."""
        return b"".join(span.digest for span in self.spans)

    def within(self, first: int, last: int) -> slice:
        """Which of the embeddings stand at positions first … last - 1."""
        bounds = torch.searchsorted(self.at, torch.tensor((first, last), device=self.at.device))
        return slice(*bounds.tolist())

    def mark(self, first: int, last: int) -> bytes:
        """What the keys of positions first … last - 1 depend on beside their tokens, and those before them."""
        found = (span for span in self.spans if span.first < last and span.last > first)
        return b"".join(f"{span.first - first},{span.last - first}:".encode() + span.digest for span in found)

    def turned(self, first: int, last: int, pairs: int) -> Tensor:
        """The coordinate that turns each pair of positions first … last - 1, int64 `[last - first, pairs]`."""
        at = torch.arange(first, last, device=self.at.device)[:, None].expand(-1, pairs) + self.shift
        if self.places is None or first >= len(self.places):
            return at
        return torch.cat((self.places[first:last], at[max(len(self.places) - first, 0) :]))

    def piece(self, first: int, count: int) -> int:
        """How many of `count` tokens from a position on may be read at once: a joint span is not cut, so fewer where
        one begins among them, more where they begin with one."""
        end = first + count
        for span in self.spans if self.joint else ():
            if span.first < end < span.last:
                return span.first - first if span.first > first else span.last - first
        return count

    def last_seen(self, first: int, last: int) -> Tensor | None:
        """The last position that each of first … last - 1 sees, int64 `[last - first]`; None where that is itself."""
        spans = [span for span in self.spans if span.first < last and span.last > first] if self.joint else []
        if not spans:
            return None
        seen = torch.arange(first, last, device=self.at.device)
        for span in spans:
            seen[max(span.first - first, 0) : span.last - first] = span.last - 1
        return seen
