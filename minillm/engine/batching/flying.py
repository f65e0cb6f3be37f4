"""Tokens that were drawn on a device and that the host has not read yet, so that the device never waits to be asked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.engine.batching.request import Request


@dataclass
class Flying:
    """Tokens that were drawn and are not read yet: of each request one, and one behind each of its guesses."""

    requests: list[Request]
    fetched: Fetched
    logits_NV: Tensor


class Fetched:
    """Tokens `[n]` on their way to the host; on a CPU they are there."""

    def __init__(self, tokens_N: Tensor):
        self.tokens_N, self.arrived = tokens_N, None
        if tokens_N.device.type == "cuda":
            self.tokens_N = torch.empty(tokens_N.shape, dtype=tokens_N.dtype, pin_memory=True)
            self.tokens_N.copy_(tokens_N, non_blocking=True)
            self.arrived = torch.cuda.current_stream(tokens_N.device).record_event()

    def read(self) -> list[int]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tokens_N.tolist()
