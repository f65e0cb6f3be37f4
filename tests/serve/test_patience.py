"""Limits of time on what is done again and again."""

from __future__ import annotations

import asyncio

from minillm.serve.patience import Patience


class Clock:
    """A loop whose time a test moves; timers run when theirs has come."""

    def __init__(self) -> None:
        self.now, self.timers, self.made = 0.0, list[tuple[float, object]](), 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: object) -> asyncio.TimerHandle:
        self.made += 1
        self.timers.append((when, call))
        return self  # type: ignore[return-value]

    def cancel(self) -> None:
        self.timers.clear()

    def move(self, to: float) -> None:
        self.now = to
        due = [each for each in self.timers if each[0] <= to]
        self.timers = [each for each in self.timers if each[0] > to]
        for _, call in due:
            call()  # type: ignore[operator]


def made(seconds: float) -> tuple[Patience, Clock, list[float]]:
    clock, rang = Clock(), list[float]()

    async def inside() -> Patience:
        return Patience(seconds, lambda: rang.append(clock.now))

    patience = asyncio.run(inside())
    patience._loop = clock  # type: ignore[assignment]
    return patience, clock, rang


def test_it_rings_once_so_long_after_the_last_start() -> None:
    patience, clock, rang = made(10.0)
    for at in range(8):  # begun at 0 to 7, and in time but for the last
        clock.move(float(at))
        patience.start()
        if at < 7:
            patience.stop()
    clock.move(10.0)
    assert (rang, patience.over) == ([], False)
    clock.move(17.0)
    assert (rang, patience.over) == ([17.0], True)
    clock.move(99.0)
    assert rang == [17.0]
    assert clock.made == 2  # timers, for eight starts


def test_what_is_done_in_time_never_rings() -> None:
    patience, clock, rang = made(1.0)
    patience.start()
    patience.stop()
    clock.move(5.0)
    patience.start()
    patience.close()
    clock.move(50.0)
    assert rang == []
    assert not patience.over


def test_it_can_be_started_again_after_it_rang() -> None:
    patience, clock, rang = made(1.0)
    for _ in range(3):
        patience.start()
        assert not patience.over
        clock.move(clock.now + 1.0)
    assert rang == [1.0, 2.0, 3.0]
