"""A request under way: what is wanted, and what of it lies in which blocks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from minillm.engine.asked import Reader
from minillm.engine.completion import Completion
from minillm.model.pools import Group

GONE = -1  # in a table: a block that lies behind the window and was given up


@dataclass
class Times:
    """By time.monotonic(): when a request came, joined those under way, had its first token, and its last."""

    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    first: float | None = None
    last: float | None = None


@dataclass(eq=False)
class Request:
    """One completion in the engine. Of the requests that wait those of a higher `priority` come first, and among equals
    those of the `client` that has fewest under way. Prefixes are shared only with requests of the same `salt`.
    `deadline` is by time.monotonic()."""

    row: Completion
    priority: int = 0
    client: str = ""
    salt: bytes = b""
    deadline: float | None = None
    number: int = 0  # in the order of arrival
    computed: int = 0  # positions whose keys lie in blocks
    flying: int = 0  # tokens that were drawn and are not known yet
    cached: int = 0  # of these, those that were there already
    preempted: int = 0  # how often all was given up to be computed anew
    tables: dict[Group, list[int]] = field(default_factory=dict)  # the blocks of each group, in order
    names: list[bytes] = field(default_factory=list)  # of its full blocks
    named: int = 0  # how many of them were given their names
    salted: bytes | None = None  # what the keys that are computed depend on
    snapshot: tuple[int, bytes] | None = None  # where the last state behind new tokens is kept, and its name
    leader: Request | None = None  # one with the same prompt, whose blocks it takes over when that is read
    guessed: bool = True  # where the engine guesses at all
    guesses: list[int] = field(default_factory=list)  # of the tokens behind those that are known, for the next pass
    saved: int | None = None  # the block of its state as it was before the guesses
    reader: Reader | None = None  # sees what is behind the last layer, as `Asked` says
    times: Times = field(default_factory=Times)

    @property
    def error(self) -> str | None:
        """Why it cannot go on."""
        return self.row.error

    @error.setter
    def error(self, reason: str) -> None:
        self.row.error = reason

    @property
    def length(self) -> int:
        """Tokens that are known."""
        return len(self.row.prompt) + len(self.row.token_ids)

    @property
    def unread(self) -> int:
        """Tokens that are there and not computed; one where it is being decoded."""
        return self.length + self.flying - self.computed

    @property
    def reading(self) -> bool:
        """Whether its prompt is not all computed."""
        return self.computed < len(self.row.prompt)

    @property
    def decoding(self) -> bool:
        """Whether it has begun to write."""
        return bool(self.row.token_ids)

    @property
    def follows(self) -> bool:
        """Whether it waits for another to have read the prompt that they have in common."""
        leader = self.leader
        return leader is not None and not leader.finished and leader.reading

    @property
    def known(self) -> int:
        """How many of its first tokens need not go through the model where their keys are there: all but the last,
        whose logits are wanted, and those whose hidden states nobody wants to see."""
        return self.length - 1 if self.reader is None else min(self.length - 1, self.row.asked.read_from)

    def wants(self, count: int) -> bool:
        """Whether somebody wants to see what is behind the next so many tokens."""
        last = min(self.computed + count, len(self.row.prompt))
        return self.reader is not None and max(self.computed, self.row.asked.read_from) < last

    @property
    def inserting(self) -> bool:
        """Whether what is read next can be of a prompt that is not text alone."""
        return self.row.inserted is not None and self.reading

    @property
    def shift(self) -> int:
        """How far behind its position a token that follows the prompt is turned."""
        return 0 if self.row.inserted is None else self.row.inserted.shift

    @property
    def finished(self) -> bool:
        return self.row.finish_reason is not None or self.error is not None

    @property
    def late(self) -> bool:
        """Whether its deadline is past."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def ids(self, first: int, last: int) -> list[int]:
        """Token ids of positions first … last - 1, guesses included."""
        prompt, made = self.row.prompt, self.row.token_ids
        made = made + self.guesses if self.guesses else made
        inner = len(prompt)
        return prompt[first:last] + made[max(first - inner, 0) : max(last - inner, 0)]
