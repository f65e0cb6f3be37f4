"""How much memory there is, asked before it is taken."""

from __future__ import annotations

import os
from pathlib import Path


def available() -> int | None:
    """Bytes that the system can give without swapping; where it does not say, all it has, or None."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def refuse_more(needed: int, what: str) -> None:
    """Raises ValueError where so many bytes are more than there are."""
    free = available()
    if free is not None and needed > free:
        raise ValueError(f"{what} takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")
