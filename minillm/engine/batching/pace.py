"""How long a prompt's pieces may be, so that those who wait for their next token do not wait too long."""

from __future__ import annotations

from minillm.engine.batching.scheduler import Work

NEW = 0.25  # what the latest pass counts for in an average


class Pace:
    """A pass takes about base + each * tokens of prompts, as the last passes have shown; it is to take `seconds`.

    Only passes that decode count: a prompt by itself is read in long pieces, in which a token takes less than half the
    time that it takes in a short one."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.base = 0.0
        self.each: float | None = None

    def saw(self, work: Work, seconds: float) -> None:
        """A pass and how long it took."""
        read = sum(count for _, count in work if count > 1)
        if not read:
            self.base = _averaged(self.base or None, seconds)
        elif any(count == 1 for _, count in work):
            self.each = _averaged(self.each, max(seconds - self.base, 0.0) / read)

    def budget(self, most: int, least: int, waiting: float = 0.0) -> int:
        """Tokens of prompts beside those that are being decoded; at least some, so that prompts come to their end.
        Where more requests wait to be read than are decoded, `waiting` times as many, a pass may take as much longer:
        a few wait so that many need not."""
        if self.each is None:
            return least
        room = (self.seconds * max(waiting, 1.0) - self.base) / max(self.each, 1e-9)
        return max(least, min(most, int(room)))


def _averaged(before: float | None, now: float) -> float:
    return now if before is None else (1 - NEW) * before + NEW * now
