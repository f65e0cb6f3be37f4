"""How much memory is left, to refuse what cannot fit before any of it is taken: Linux grants more than it has, and ends
the process that uses it."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Of a control group, versions 2 and 1: the limit, what is used, and what of that are files which the system drops.
LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_cache",
    ),
)


def available() -> int | None:
    """Bytes that this process may still take: of the machine, of its control group and of its own limit. Where the
    system does not say what is free, all that the machine has, or None."""
    rooms = [_room(*files) for files in LIMITS]
    if found := re.search(r"^MemAvailable: *(\d+) kB", _text("/proc/meminfo"), re.MULTILINE):
        rooms.append(int(found[1]) * 1024)
    if found := re.search(r"^Max address space +(\d+)", _text("/proc/self/limits"), re.MULTILINE):
        used = re.search(r"^VmSize:\s*(\d+) kB", _text("/proc/self/status"), re.MULTILINE)
        rooms.append(int(found[1]) - (int(used[1]) * 1024 if used else 0))
    known = [room for room in rooms if room is not None]
    return max(min(known), 0) if known else _all()


def refuse(needed: int, what: str, remedy: str) -> None:
    """Raise ValueError where `what` takes more bytes than are left."""
    left = available()
    if left is not None and needed > left:
        raise ValueError(f"{what} takes {needed / 1e9:,.1f} GB and {left / 1e9:,.1f} GB are left; {remedy}")


def _all() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _room(limit: str, used: str, details: str, files: str) -> int | None:
    most, now = _text(limit).strip(), _text(used).strip()
    if not (most.isdecimal() and now.isdecimal()):
        return None
    dropped = re.search(rf"^{files} (\d+)$", _text(details), re.MULTILINE)
    return int(most) - int(now) + (int(dropped[1]) if dropped else 0)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
