"""A request under way: what is wanted, and what of it lies in which blocks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from minillm.engine.completion import Completion
from minillm.model.pools import Group

GONE = -1  # in a table: a block that lies behind the window and was given up


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
    error: str | None = None

    @property
    def length(self) -> int:
        """Tokens that are known."""
        return len(self.row.prompt) + len(self.row.token_ids)

    @property
    def unread(self) -> int:
        """Tokens that are there and not computed; one where it is being decoded."""
        return self.length + self.flying - self.computed

    @property
    def finished(self) -> bool:
        return self.row.finish_reason is not None or self.error is not None

    @property
    def late(self) -> bool:
        """Whether its deadline is past."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def ids(self, first: int, last: int) -> list[int]:
        """Token ids of positions first … last - 1."""
        prompt, made = self.row.prompt, self.row.token_ids
        inner = len(prompt)
        return prompt[first:last] + made[max(first - inner, 0) : max(last - inner, 0)]
