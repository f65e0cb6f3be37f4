"""The time that each part of a model takes by itself, through hooks around its modules."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from minillm.model.norm import NoNorm


@dataclass
class Timer:
    """Of each part the time by itself, the calls, and the bytes of the activations that leaves took and gave."""

    now: Callable[[], float]
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    activations: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self._open: list[list[float]] = []  # of each part under way: when it began, and the seconds of parts inside

    def begin(self) -> None:
        self._open.append([self.now(), 0.0])

    def end(self, part: str, moved: Iterable[Any] = ()) -> None:
        """What began last was this part; of what it took and gave, the tensors count."""
        began, inside = self._open.pop()
        spent = self.now() - began
        self.seconds[part] += spent - inside
        self.calls[part] += 1
        self.activations[part] += sum(each.nbytes for each in moved if isinstance(each, Tensor))
        if self._open:
            self._open[-1][1] += spent


def part_of(name: str) -> str:
    """The part that a module of this name is: its place within a layer, whichever layer."""
    return re.sub(r"^layers\.\d+\.?", "", name) or ("layer" if name else "")


@contextlib.contextmanager
def watched(model: nn.Module, timer: Timer) -> Iterator[None]:
    """Hooks around all modules of a model but norms that do nothing; and around two methods that are called without
    their module: a norm's of a sum, and the head's."""
    hooks, wrapped = [], []

    def wrap(module: nn.Module, method: str, part: str, leaf: bool) -> None:
        call = getattr(module, method)

        def timed(*given: Any) -> Any:
            timer.begin()
            made = call(*given)
            timer.end(part, _moved(given, made) if leaf else ())
            return made

        setattr(module, method, timed)
        wrapped.append((module, method))

    for name, module in model.named_modules():
        if not name or isinstance(module, (NoNorm, nn.ModuleList)):
            continue
        part, leaf = part_of(name), not any(module.children())

        def leave(_: nn.Module, given: Any, made: Any, part: str = part, leaf: bool = leaf) -> None:
            timer.end(part, _moved(given, made) if leaf else ())

        hooks += [module.register_forward_pre_hook(lambda *_: timer.begin()), module.register_forward_hook(leave)]
        if hasattr(module, "of_sum"):
            wrap(module, "of_sum", part, leaf)
    wrap(model, "logits", "head", leaf=False)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, method in wrapped:
            delattr(module, method)


def _moved(given: tuple[Any, ...], made: Any) -> tuple[Any, ...]:
    return *given, *(made if isinstance(made, tuple) else (made,))
