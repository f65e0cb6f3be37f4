"""Whether a checkpoint fits a device and how fast it could be there: bounds from bytes and operations alone.

Weights and cache are taken to lie evenly over all devices, which read them and compute at the same time. A tenth of
each device's memory is left for activations, the runtime and fragmentation. A decode step takes at least the time to
read the weights that its tokens go through and the cache of each row; a prompt takes at least the time for its
operations. Nothing here has been measured: no device reaches its bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minillm.model.costs import cached_values_held, cached_values_seen, state_bytes
from minillm.plan.devices import Device
from minillm.spec import Decoder

MAX_BATCH, MAX_DEVICES = 2**20, 2**16  # that one may ask about
USABLE_PERCENT = 90  # of a device's memory
STORED = "as stored"
FORMATS = ("bfloat16", "fp8", "int8", "int4")  # what a model is offered in, by how little each changes it


@dataclass(frozen=True)
class Need:
    """What is asked for: the decoder's bytes in the chosen format and in all others, and the cache."""

    spec: Decoder
    weights: int
    others: dict[str, int]  # by format
    context: int
    batch: int
    width: int  # bytes of a value in the cache

    def cache(self, context: int, batch: int) -> int:
        """What is held."""
        return batch * (self.width * cached_values_held(self.spec, context) + state_bytes(self.spec, self.width))

    def read(self) -> int:
        """What a decode step reads of it."""
        per_row = self.width * cached_values_seen(self.spec, self.context) + state_bytes(self.spec, self.width)
        return self.batch * per_row

    def total(self) -> int:
        return self.weights + self.cache(self.context, self.batch)


def fit(need: Need, device: Device, count: int) -> dict[str, Any]:
    """Whether it fits `count` devices, and what would make it fit or how much more would.

    `largest_context` is for the batch asked for and `largest_batch` for the context, 0 where nothing fits; `formats`
    has those that are smaller and fit where what is asked for does not; `together` a format and a context where neither
    helps alone.
    """
    usable, total = device.memory * count * USABLE_PERCENT // 100, need.total()
    room = usable - need.weights
    smaller = {name: size for name in FORMATS if (size := need.others[name]) < need.weights}
    cache, fits = need.cache(need.context, need.batch), total <= usable
    fitting = [] if fits else [name for name, size in smaller.items() if size + cache <= usable]
    # Where neither is enough by itself: the first format that leaves room for some context.
    both = ((name, found) for name, size in smaller.items() if (found := _context(need, usable - size)))
    context = _context(need, room)
    together = None if fits or fitting or context else next(both, None)
    return {
        "fits": fits,
        "needed_bytes": total,
        "usable_bytes": usable,
        "formats": fitting,
        "largest_context": context,
        "together": None if together is None else {"format": together[0], "largest_context": together[1]},
        "largest_batch": min(max(room, 0) // need.cache(need.context, 1), MAX_BATCH),
        "devices_needed": -(-100 * total // (USABLE_PERCENT * device.memory)),
    }


def _context(need: Need, room: int) -> int:
    """The largest context whose cache takes no more than `room` at the batch asked for."""
    return largest(need.spec.context, lambda each: need.cache(each, need.batch) <= room)


def largest(limit: int, holds: Callable[[int], bool]) -> int:
    """The largest number from 1 to `limit` that a condition holds for, which holds for all smaller ones too; else 0."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def speed(device: Device, count: int, batch: int, step_bytes: int, prefill_flops_per_token: float) -> dict[str, Any]:
    """Upper bounds in tokens per second of all rows together; None where the device's figures are not known."""
    decode = None if device.bandwidth is None else batch * count * device.bandwidth / step_bytes
    prefill = None if device.bf16 is None else count * device.bf16 / prefill_flops_per_token
    return {"decode_tokens_per_second": decode, "prefill_tokens_per_second": prefill}
