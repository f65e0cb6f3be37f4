"""Speculative decoding: tokens are guessed cheaply, and one pass of the model over all guesses says how many of them it
would have written itself (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318).

A pass over a few tokens reads the weights once, as a pass over one does, and so costs little more. Its logits are those
behind each guess, as long as the guesses before it are right: the model draws from them in order, keeps what agrees
with the guesses, and its first draw that does not is the next token all the same. What was computed of the wrong
guesses does not count; the next tokens are written over it.

The papers accept a guess x of the draft's distribution q with probability min(1, p(x) / q(x)) and else draw from what p
has over q. Here every draw is a function of seed, position and token (`ops/draw.py`): the draft draws with the very
numbers that the model will draw with, so both choose alike where their distributions are alike (Daliri et al.,
arXiv:2408.07978), and a guess is right if it is what the model draws. So the text is not only distributed as without
guesses but the same, whatever the settings; what it costs is a few accepted guesses in a hundred.

Where guesses cost more than they save is seen by how many were right. One token more makes a pass that reads all
weights longer by 1 / PASS, and gives one of n rows a token more with chance a, where all n have a token in
1 + n / PASS. So it pays where a > n / (PASS + n), and a guess that costs c of a pass itself where a is greater by c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from minillm.engine.batching.passes import alone
from minillm.engine.batching.request import Request
from minillm.engine.batching.scheduler import Work
from minillm.engine.batching.store import Store

PASS = 24  # tokens: what reading all weights once costs, by measurement on a CPU (20 to 25)
COUNT = 4  # guesses at a time
LATEST = 0.2  # what the latest guesses count for in an average
REST = 32  # tokens until guesses that did not pay are tried again

Wanted = Sequence[tuple[Request, int]]  # requests, each with how many tokens may be guessed


class Proposer(Protocol):
    """What guesses tokens to come. A guess costs `cost` of a pass of the model."""

    cost: float

    def propose(self, wanted: Wanted) -> list[list[int]]:
        """At most so many tokens for each, which may be none."""


class Guesser:
    """Puts up to `count` guesses behind the last token of each request for which they pay."""

    def __init__(self, proposer: Proposer, count: int = COUNT):
        self.proposer, self.count = proposer, count
        self.right: WeakKeyDictionary[Request, float] = WeakKeyDictionary()  # of the guesses, on average
        self.tried: WeakKeyDictionary[Request, int] = WeakKeyDictionary()  # the length at the last guesses

    def guess(self, work: Work, store: Store, budget: int) -> Work:
        """The work of a pass with guesses in it, at most `budget` tokens in all."""
        rows = sum(request.decoding for request, _ in work)
        left = budget - sum(count for _, count in work)
        wanted = []
        for request, count in work:
            most = min(self.count, left, request.row.remaining - 1, store.alike(request))
            ready = request.guessed and request.decoding and count == request.unread
            if ready and most > 0 and self._pays(request, rows):
                wanted.append((request, most))
                left -= most
        for (request, _), guesses in zip(wanted, self.proposer.propose(wanted), strict=True):
            guide = request.row.asked.guide
            fitting = guesses if guide is None or not guesses else guesses[: guide.allowed(guesses)]
            if fitting and store.grow(request, request.length + len(fitting)) and store.save(request):
                request.guesses = fitting
                self.tried[request] = request.length
        whole = [(request, count + len(request.guesses)) for request, count in work]
        return sorted(whole, key=lambda pair: not alone(pair, store))

    def saw(self, request: Request, count: int, right: int) -> None:
        """How many of a request's guesses were right."""
        self.right[request] = (1 - LATEST) * self.right.get(request, 1.0) + LATEST * right / count

    def _pays(self, request: Request, rows: int) -> bool:
        least = rows / (PASS + rows) + self.proposer.cost
        return self.right.get(request, 1.0) > least or request.length - self.tried.get(request, request.length) >= REST
