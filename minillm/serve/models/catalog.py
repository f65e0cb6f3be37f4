"""All that are served, and which of them are in memory, within a bound.

A checkpoint that is asked for and not in memory is loaded; until there is room for it, the one that was not used for
longest is let go, those in use last. It takes no new requests then, but those that it has come to their end first: who
asks for it meanwhile waits for it to be loaded again, behind the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from minillm.guard.screen import note, shown
from minillm.serve.errors import Refusal, retry
from minillm.serve.models import Card, Served

Progress = Callable[[int, int], None]
Load = Callable[[Progress], Served]


class Model:
    """One that can be asked for: what lists say of it, the bytes that it takes, and how it is loaded."""

    def __init__(self, card: Card, needed: int, load: Load):
        self.card, self.needed, self.load = card, needed, load
        self.copy: Copy | None = None  # for new requests

    @classmethod
    def of(cls, served: Served) -> Model:
        """One that is loaded, and stays so."""
        made = cls(served.card, 0, lambda progress: served)
        made.copy = Copy(made, served)
        return made


class Copy:
    """A model in memory, or on its way there. Whoever takes it gives it back."""

    def __init__(self, model: Model, served: Served | None = None):
        self.model, self.needed = model, model.needed
        self.loaded: Served | None = served
        self.coming: asyncio.Task[None] | None = None
        self.users, self.used = 0, time.monotonic()
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def served(self) -> Served:
        assert self.loaded is not None
        return self.loaded

    def take(self) -> Copy:
        self.users += 1
        self.idle.clear()
        return self

    def give(self) -> None:
        self.users, self.used = self.users - 1, time.monotonic()
        if not self.users:
            self.idle.set()

    def close(self) -> None:
        """End its engine, and let go of its weights. Takes a moment."""
        if self.loaded is not None:
            self.loaded.engine.close()
            self.loaded = None
            gc.collect()


class Catalog:
    """Models by name. `absent` has names that cannot be served, and why. `memory` is how many bytes those that are
    loaded may take together; None is no bound. Nothing more is loaded once it is `closing`."""

    def __init__(self, models: Sequence[Model], absent: Mapping[str, str] | None = None, memory: int | None = None):
        self.all, self.memory, self.absent = tuple(models), memory, absent or {}
        self.named = {name: each for each in models for name in each.card.names}
        self.copies = [each.copy for each in models if each.copy]
        self.closing = False
        self._turn = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, "minillm models")

    @property
    def loaded(self) -> list[Served]:
        return [each.loaded for each in self.copies if each.loaded is not None]

    def find(self, name: str | None) -> Model:
        """The model of a name, which may be left out where there is one, with adapters or without. Raises Refusal."""
        if name is None:
            if len(alone := [each for each in self.all if each.card.parent is None]) == 1:
                return alone[0]
            raise Refusal(400, f"model is required; there are {', '.join(self.named)}", "invalid_value", "model")
        plain = name.removesuffix(":latest")
        found = self.named.get(name) or self.named.get(plain)
        if found is None:
            reason = self.absent.get(name) or self.absent.get(plain) or f"there are {', '.join(self.named)}"
            raise Refusal(404, f"The model {shown(name)} does not exist; {reason}", "model_not_found", "model")
        return found

    def ready(self, name: str | None) -> Copy | None:
        """A model that is in memory, taken; None for one that is not. Raises Refusal."""
        copy = self.find(name).copy
        return copy.take() if copy and copy.loaded else None

    async def take(self, name: str | None) -> Copy:
        """A model, loaded if need be. Raises Refusal."""
        model = self.find(name)
        if model.copy is None:
            model.copy = Copy(model)
            model.copy.coming = asyncio.create_task(self._load(model.copy))
            model.copy.coming.add_done_callback(_heard)
        copy = model.copy.take()
        try:
            if copy.loaded is None and copy.coming is not None:
                await asyncio.shield(copy.coming)
        except BaseException:
            copy.give()
            raise
        return copy

    @contextlib.asynccontextmanager
    async def using(self, name: str | None) -> AsyncIterator[Served]:
        """A model for as long as it is needed. Raises Refusal."""
        copy = await self.take(name)
        try:
            yield copy.served
        finally:
            copy.give()

    async def _load(self, copy: Copy) -> None:
        """Raises Refusal."""
        name = copy.model.card.name
        try:
            async with self._turn:
                await self._make_room(copy.needed)
                self.copies.append(copy)
                copy.loaded = await self._beside(lambda: copy.model.load(self._progress))
        except Exception as error:
            copy.model.copy = None
            self.copies = [each for each in self.copies if each is not copy]
            if self.closing:
                raise retry(503, "the server is shutting down; try another, or later", 5, "shutting_down") from None
            note(f"{name} could not be loaded: {error}")
            said = f"the model {shown(name)} could not be loaded; the server's log says why"
            raise Refusal(503, said, "model_not_loaded", "model") from None

    async def _make_room(self, needed: int) -> None:
        while self.memory is not None and self.copies and needed + sum(x.needed for x in self.copies) > self.memory:
            copy = min(self.copies, key=lambda each: (each.users > 0, each.used))
            if copy.model.copy is copy:
                copy.model.copy = None
            await copy.idle.wait()
            self.copies.remove(copy)
            await self._beside(copy.close)

    async def _beside(self, work: Callable[[], Served | None]) -> Served | None:
        return await asyncio.get_running_loop().run_in_executor(self._loader, work)

    def _progress(self, done: int, total: int) -> None:
        if self.closing:
            raise ValueError("the server is shutting down")

    def close(self) -> None:
        """End all engines, and a load under way."""
        self.closing = True
        self._loader.shutdown(cancel_futures=True)
        for each in self.copies:
            each.close()


def _heard(task: asyncio.Task[None]) -> None:
    """Those who waited for it may have left: else asyncio would complain that nobody took the error."""
    if not task.cancelled():
        task.exception()
