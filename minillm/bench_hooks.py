"""The time that each part of a model takes by itself, through hooks around its modules."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from minillm.norm import NoNorm


@dataclass
class Timer:
    """Time of each part by itself, calls, and the bytes of activations, of whatever ran since `clear`."""

    now: Callable[[], float]
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    activations: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self._open: list[list[float]] = []  # of each part under way: when it began, and the seconds of parts inside

    def clear(self) -> None:
        for counts in (self.seconds, self.calls, self.activations):
            counts.clear()

    def begin(self) -> None:
        self._open.append([self.now(), 0.0])

    def end(self, part: str) -> None:
        began, inside = self._open.pop()
        spent = self.now() - began
        self.seconds[part] += spent - inside
        self.calls[part] += 1
        if self._open:
            self._open[-1][1] += spent

    def around(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            self.begin()
            result = call(*given, **named)
            self.end(part)
            return result

        return timed


def part_of(name: str) -> str:
    """The part that a module of this name is: its place within a layer, whichever layer."""
    return re.sub(r"^layers\.\d+\.?", "", name) or ("layer" if name else "")


@contextlib.contextmanager
def watched(model: nn.Module, timer: Timer) -> Iterator[None]:
    """Hooks around all modules of a model but norms that do nothing; and around the two calls that are not modules."""
    hooks, wrapped = [], []

    def wrap(module: nn.Module, method: str, part: str) -> None:
        setattr(module, method, timer.around(getattr(module, method), part))
        wrapped.append((module, method))

    for name, module in model.named_modules():
        if not name or isinstance(module, (NoNorm, nn.ModuleList)):
            continue
        part, leaf = part_of(name), not any(module.children())

        def leave(_: nn.Module, given: Any, made: Any, part: str = part, leaf: bool = leaf) -> None:
            timer.end(part)
            moved = [*given, *(made if isinstance(made, tuple) else [made])] if leaf else []
            timer.activations[part] += sum(each.nbytes for each in moved if isinstance(each, Tensor))

        hooks += [module.register_forward_pre_hook(lambda *_: timer.begin()), module.register_forward_hook(leave)]
        if hasattr(module, "of_sum"):
            wrap(module, "of_sum", part)
    wrap(model, "logits", "head")
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, method in wrapped:
            delattr(module, method)
