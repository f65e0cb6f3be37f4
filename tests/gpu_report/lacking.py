"""Stand-ins for two small packages, where a machine lacks them: without einops nothing of the package imports, and tqdm
draws a bar. Whatever else a step needs it looks for itself."""

from __future__ import annotations

import importlib.util
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor


def rearrange(tensor: Tensor, pattern: str, **known: int) -> Tensor:
    """`einops.rearrange` of named axes, axes in brackets and axes of size 1: "B T (H D) -> B H T D"."""
    before, after = map(axes, pattern.split("->"))
    for names, size in zip(before, tensor.shape, strict=True):
        missing = [name for name in names if name not in known]
        rest = math.prod(known[name] for name in names if name in known)
        known |= dict.fromkeys(missing, size // rest)  # one at most, or the reshape below fails
    names = [name for group in before for name in group]
    order = [names.index(name) for group in after for name in group]
    apart = tensor.reshape([known[name] for name in names]).permute(order)
    return apart.reshape([math.prod(known[name] for name in group) for group in after])


def axes(side: str) -> list[list[str]]:
    """ "B (H D) 1" -> [["B"], ["H", "D"], []]."""
    groups: list[list[str]] = []
    inside = False
    for word in side.replace("(", " ( ").replace(")", " ) ").split():
        if word in "()":
            inside = word == "("
            groups += [[]] if inside else []
        elif inside:
            groups[-1].append(word)
        else:
            groups.append([] if word == "1" else [word])
    return groups


class tqdm:
    """A bar that is not drawn."""

    def __init__(self, **kind: Any): ...

    def __enter__(self) -> tqdm:
        return self

    def __exit__(self, *raised: object) -> None: ...

    def update(self, count: int = 1) -> None: ...


def stand_in() -> list[str]:
    """Put them where their packages are not; returns the names of those."""
    absent = []
    for name, part in (("einops", rearrange), ("tqdm", tqdm)):
        if importlib.util.find_spec(name) is None:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)  # others ask for it
            setattr(module, part.__name__, part)
            sys.modules[name] = module
            absent.append(name)
    return absent
