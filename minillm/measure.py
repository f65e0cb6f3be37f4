"""What a run cost, against what the machine can do: bandwidth reached, bandwidth possible, memory at its peak."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from minillm.model import Decoder
from minillm.moe import Experts
from minillm.spec import MLA
from minillm.spec import Decoder as DecoderSpec

COPY_BYTES = 128 * 2**20  # twice that is moved: more than a core's share of any cache


def active_values(model: Decoder) -> dict[str, int]:
    """How many values of each parameter one token goes through: all, but of a layer's experts only the chosen ones."""
    counts = {}
    for name, parameter in model.named_parameters():
        owner, counts[name] = model.get_submodule(name.rpartition(".")[0]), parameter.numel()
        if isinstance(owner, Experts):
            router = owner.spec.router
            counts[name] = counts[name] * router.top_k // router.num_experts
    return counts


def cached_values(spec: DecoderSpec) -> int:
    """Values that one token takes in the caches of all layers, as long as their windows see it."""
    return sum(
        a.kv_rank + a.rope.dim if isinstance(a, MLA) else 2 * a.num_kv_heads * a.head_dim
        for a in (layer.attention for layer in spec.layers)
    )


def bytes_per_step(model: Decoder) -> int:
    """Bytes of weights that one decode step of one token reads: the active ones, but of an embedding that is not also
    the head only the row looked up, which is next to nothing."""
    parameters = dict(model.named_parameters())
    total = sum(count * parameters[name].element_size() for name, count in active_values(model).items())
    return total - (0 if model.spec.tied else sum(part.nbytes for part in model.embedding.parameters()))


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


def synchronize(device: torch.device) -> None:
    """Wait for a GPU, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process has held, in the GPU's memory or in the machine's; 0 where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:  # getrusage would count what the parent held when it started this process
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
