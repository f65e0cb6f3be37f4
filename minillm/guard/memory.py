"""How much memory there is, asked before it is taken."""

from __future__ import annotations

import os
from pathlib import Path


def available() -> int | None:
    """Bytes that this process can still have: what the system can give without swapping, and what limits of a process
    and of a container leave. Where the system does not say, all that it has, or None."""
    known = [each for each in (_free(), _below_limit(), _in_container()) if each is not None]
    return max(min(known), 0) if known else None


def refuse_more(needed: int, what: str) -> None:
    """Raises ValueError where so many bytes are more than there are."""
    free = available()
    if free is not None and needed > free:
        raise ValueError(f"{what} takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")


def _free() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _below_limit() -> int | None:
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        return None if soft == resource.RLIM_INFINITY else soft - used
    except (ImportError, OSError, ValueError):
        return None


def _in_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Of the second version of control groups."""
    try:
        limit, used = ((folder / name).read_text() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no such files, or the word "max"
        return None
