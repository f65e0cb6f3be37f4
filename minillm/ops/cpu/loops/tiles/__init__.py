"""Loops over matrices of few bits in tiles of 16 rows (`weights/grouped.py`). As those beside it, each file is imported
when something of it is first used."""

from __future__ import annotations

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_"):
        raise AttributeError(name)
    return importlib.import_module(f"{__name__}.{name}")
