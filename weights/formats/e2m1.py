"""Four-bit floats, with a sign, two bits of exponent and one of fraction: ±0, 0.5, 1, 1.5, 2, 3, 4 or 6 (Open Compute
Project, Microscaling Formats v1.0). Two lie in a byte, the first of them in its low half."""

from __future__ import annotations

import torch
from torch import Tensor

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*MAGNITUDES, *(-each for each in MAGNITUDES))
# Two fp32 values for each byte, side by side in one int64: a table of single numbers is looked up five times as fast.
PAIRS = torch.tensor([(VALUES[byte & 15], VALUES[byte >> 4]) for byte in range(256)]).view(torch.int64).flatten()


def values(stored: Tensor) -> Tensor:
    """uint8 `[..., N / 2]` -> what its halves stand for, fp32 `[..., N]`."""
    pairs = PAIRS.to(stored.device).index_select(0, stored.flatten().int())
    return pairs.view(torch.float32).view(*stored.shape[:-1], -1)
