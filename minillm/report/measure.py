"""What a run cost, against what the machine can do: bandwidth reached, bandwidth possible, memory at its peak."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from pathlib import Path

import torch

COPY_BYTES = 128 * 2**20  # twice that is moved: more than a core's share of any cache
MATRIX_SIZES = (1024, 2048, 4096, 8192)
LONG_ENOUGH = 1.0  # seconds of one product, past which a larger one is not tried


def copy_bandwidth(device: torch.device) -> float | None:
    """Bytes per second that a copy on this device reads and writes, each counted once: the best of five; None where
    memory for it lacks."""
    try:
        source = torch.ones(COPY_BYTES // 4, dtype=torch.float32, device=device)
        target = torch.empty_like(source)
    except RuntimeError:  # no memory left to measure with
        return None
    best = float("inf")
    for _ in range(6):  # the first touches the pages
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * COPY_BYTES / best


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second of the fastest of a few large products x Wᵀ in `dtype`, two for each pair of values; None
    where memory for one lacks."""
    best = 0.0
    for size, _ in itertools.product(MATRIX_SIZES, range(3)):
        try:
            x, weight = torch.randn(2, size, size, dtype=dtype, device=device)
        except RuntimeError:
            break
        synchronize(device)
        started = time.perf_counter()
        x @ weight.T
        synchronize(device)
        seconds = time.perf_counter() - started
        best = max(best, 2 * size**3 / seconds)
        if seconds > LONG_ENOUGH:
            break
    return best or None


def synchronize(device: torch.device) -> None:
    """Wait for a GPU, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process has held, in the GPU's memory or in the machine's; 0 where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (
        peak := peak_rss("self")
    ) is not None:  # getrusage would count what the parent held when it started this process
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def peak_rss(process: int | str) -> int | None:
    """Bytes: the most of the machine's memory that a process has held, mapped files included; None where Linux's /proc
    is not there to tell."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def forget_peak_rss(process: int) -> None:
    """Let `peak_rss` count from what the process holds now, where the system can do that."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/clear_refs").write_text("5")
