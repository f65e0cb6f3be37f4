"""Whether a checkpoint fits a device and how fast it could be there: bounds from bytes and operations alone.

Weights and cache are taken to lie evenly over all devices, which read them and compute at the same time. A tenth of
each device's memory is left for activations, the runtime and fragmentation. A decode step takes at least the time to
read the weights that its tokens go through and the cache of each row; a prompt takes at least the time for its
operations. Nothing here has been measured: no device reaches its bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minillm.measure import cached_values_seen
from minillm.plan_devices import Device
from minillm.spec import Decoder

USABLE = 0.9  # of a device's memory
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
        return batch * self.width * cached_values_seen(self.spec, context)

    def total(self) -> int:
        return self.weights + self.cache(self.context, self.batch)


def fit(need: Need, device: Device, count: int) -> dict[str, Any]:
    """Whether it fits `count` devices, and what would make it fit or how much more would.

    `largest_context` is for the batch asked for and `largest_batch` for the context, 0 where nothing fits; `format` is
    the one that changes the model least of those that are smaller and fit, None where none does or none is needed.
    """
    usable, total = math.floor(USABLE * device.memory * count), need.total()
    room = usable - need.weights
    smaller = {name: size for name in FORMATS if (size := need.others[name]) < need.weights}
    cache = need.cache(need.context, need.batch)
    fitting = (name for name, size in smaller.items() if size + cache <= usable)
    return {
        "fits": total <= usable,
        "needed_bytes": total,
        "usable_bytes": usable,
        "format": None if total <= usable else next(fitting, None),
        "largest_context": largest(need.spec.context, lambda each: need.cache(each, need.batch) <= room),
        "largest_batch": max(room, 0) // need.cache(need.context, 1),
        "devices_needed": math.ceil(total / (USABLE * device.memory)),
    }


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
