"""The CPU path: loops that numba compiles. `ops/cpu/ops.py` puts them behind the seam.

Each file is imported when something of it is first used: numba and its compiler take 100 MB, which a load need not wait
for nor have beside its weights.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_"):
        raise AttributeError(name)
    return importlib.import_module(f"{__name__}.{name}")
