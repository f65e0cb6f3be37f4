"""A limit of time on what is done again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Patience:
    """Calls `late` where more than so many seconds go by between `start` and `stop`, and is `over` then.

    Its timer is set anew only once it has run: what is started for each token of an answer must cost next to nothing.
    """

    def __init__(self, seconds: float, late: Callable[[], Any]):
        self.seconds, self.late, self.over = seconds, late, False
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.over, self._since = False, self._loop.time()
        if self._timer is None:
            self._set()

    def stop(self) -> None:
        self._since = None

    def close(self) -> None:
        self.stop()
        if self._timer is not None:
            self._timer.cancel()

    def _set(self) -> None:
        assert self._since is not None
        self._timer = self._loop.call_at(self._since + self.seconds, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._since is None:
            return
        if self._loop.time() < self._since + self.seconds:  # it has been started again meanwhile
            return self._set()
        self.over, self._since = True, None
        self.late()
