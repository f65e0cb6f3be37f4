"""A service for `guard/child.py` that does what strangers' programs do."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

_setup: Any


def prepare(setup: Any) -> None:
    global _setup
    if setup == "broken":
        raise ValueError("cannot be prepared")
    if isinstance(setup, float):
        time.sleep(setup)
    _setup = setup


def answer(name: str, *given: Any) -> Any:
    if name == "represented":
        return repr(*given)
    if name == "same":
        return given[0]
    if name == "process":
        return os.getpid()
    if name == "setup":
        return _setup
    if name == "modules":
        return sorted(sys.modules)
    if name == "refuse":
        raise ValueError(*given)
    if name == "take":
        return len(bytearray(*given))
    if name == "wait":
        return time.sleep(*given)
    if name == "abort":
        os.abort()
    while True:  # "loop"
        pass
