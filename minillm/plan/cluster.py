"""How fast a model could be on several machines, split in each way that they allow: an estimate, to choose by.

    sum(n, b)  = min(2 (n - 1) (latency + b / n / bandwidth), 2 ceil(log2 n) (latency + b / bandwidth))
    stage(B)   = (a rank's weights of a step + its cache of B rows) / stages / memory bandwidth
                 + sums / stages * sum(ranks, 4 B hidden size) + latency + 2 B hidden size / bandwidth
    step       = stages * stage(batch / groups), with as many groups of rows in flight as there are stages, or rows

A sum of b bytes over n ranks goes around a ring or up and down a tree (Thakur et al., doi:10.1177/1094342005051521),
whichever is faster. Ranks add in fp32; stages pass on hidden states in 16 bits. A prompt is bound by arithmetic, to
which the time for its sums is added. Ranks that stand in one machine use its links, and stages those between machines
where there are several. What is not counted: starting kernels, uneven stages, gathering logits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from minillm.parallel.split import MOST, able
from minillm.plan.devices import MAX_BYTES, UNITS, Device
from minillm.plan.fit import USABLE_PERCENT, Need
from minillm.spec import Decoder

WIDE, NARROW = 4, 2  # bytes of a value in a sum and between stages
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
LINK = re.compile(rf"{NUMBER} ?([KMGT]i?B)/s, ?{NUMBER} ?(us|ms|s)", re.IGNORECASE)


class Link(NamedTuple):
    """Bytes per second in one direction, and seconds until the first arrives."""

    bandwidth: float
    latency: float

    def total(self, count: int, nbytes: float) -> float:
        """Seconds for the sum of so many bytes over `count` ranks."""
        if count == 1:
            return 0.0
        ring = 2 * (count - 1) * (self.latency + nbytes / count / self.bandwidth)
        return min(ring, 2 * math.ceil(math.log2(count)) * (self.latency + nbytes / self.bandwidth))

    def passed(self, nbytes: float) -> float:
        return self.latency + nbytes / self.bandwidth


class Cluster(NamedTuple):
    """Machines with equal devices, and what is between two devices of one and between two machines."""

    machines: int
    devices: int  # of each machine
    inside: Link
    between: Link

    @property
    def size(self) -> int:
        return self.machines * self.devices

    def links(self, ranks: int) -> tuple[Link, Link] | None:
        """What sums over so many ranks go through, and the slowest step between stages; None where groups of ranks
        would lie across machines unevenly."""
        small, large = sorted((ranks, self.devices))
        if large % small:
            return None
        within = ranks <= self.devices
        return self.inside if within else self.between, self.inside if self.machines == 1 else self.between


class Load(NamedTuple):
    """What is asked for: in all, and of the rank that holds most of several."""

    need: Need
    largest: Callable[[int], Need]
    step: Callable[[int], int]  # bytes of weights that a step of so many rows reads
    flops: float  # of each token of a prompt


def link(text: str, flag: str) -> Link:
    """What "450GB/s,10us" means. Raises ValueError for anything else."""
    match = LINK.fullmatch(text.strip())
    bandwidth = float(match[1]) * UNITS.get(match[2].upper(), 0) if match else 0.0
    if not match or not 0 < bandwidth < MAX_BYTES:
        raise ValueError(f"{flag} is {text[:40]!r}, expected bandwidth and latency such as 450GB/s,10us")
    return Link(bandwidth, float(match[3]) * SECONDS[match[4].lower()])


def cluster(machines: str, inside: str, between: str | None) -> Cluster:
    """What --cluster 2x8, --link and --network say. Raises ValueError for what cannot be."""
    match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", machines)
    count, devices = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= count * devices <= MOST:
        expected = f"machines x devices of each, such as 2x8, at most {MOST} in all"
        raise ValueError(f"--cluster is {machines[:20]!r}, expected {expected}")
    if (between is None) != (count == 1):
        raise ValueError("--network is between machines: " + ("give it too" if count > 1 else "here is but one"))
    first = link(inside, "--link")
    return Cluster(count, devices, first, first if between is None else link(between, "--network"))


def splits(load: Load, found: Cluster, device: Device) -> list[dict[str, Any]]:
    """Each split over all devices, the fastest that fits first: how many ranks and stages, bytes of a device, and
    tokens per second of one row, of all rows, and of a prompt."""
    made = [
        split(load, found, device, ranks, found.size // ranks)
        for ranks in able(load.need.spec, found.size)
        if found.size % ranks == 0 and found.size // ranks <= len(load.need.spec.layers) and found.links(ranks)
    ]
    return sorted(made, key=lambda each: (not each["fits"], -each["decode_tokens_per_second"]))


def split(load: Load, found: Cluster, device: Device, ranks: int, stages: int) -> dict[str, Any]:
    """Of one way, see above. The device's bandwidth must be known."""
    links, bandwidth = found.links(ranks), device.bandwidth
    assert links is not None
    assert bandwidth is not None
    own, batch, sums, width = load.largest(ranks), load.need.batch, _sums(load.need.spec), load.need.spec.hidden_size
    cache, part = own.read(), own.weights / max(load.need.weights, 1)

    def stage(rows: float, share: float) -> float:
        """Seconds; `share` of the cache is of these rows."""
        read = (load.step(max(round(rows), 1)) * part + cache * share) / stages / bandwidth
        added = sums / stages * links[0].total(ranks, WIDE * rows * width)
        return read + added + (links[1].passed(NARROW * rows * width) if stages > 1 else 0.0)

    groups = min(stages, batch)
    prompt = None
    if device.bf16 is not None:
        moved = sums * 2 * (ranks - 1) / ranks * WIDE * width / links[0].bandwidth
        prompt = 1 / ((load.flops / ranks / device.bf16 + moved) / stages)
    needed = own.total() // stages
    return {
        "ranks": ranks,
        "stages": stages,
        "needed_bytes": needed,
        "fits": needed <= device.memory * USABLE_PERCENT // 100,
        "one_row_tokens_per_second": 1 / (stages * stage(1, 1 / batch)),
        "decode_tokens_per_second": batch / (stages * stage(batch / groups, 1 / groups)),
        "prefill_tokens_per_second": prompt,
    }


def _sums(spec: Decoder) -> int:
    """How many a pass has: of each layer's attention and feed-forward, one where they stand side by side, and of the
    embedding."""
    return 1 + sum(1 if layer.parallel else 2 for layer in spec.layers)
