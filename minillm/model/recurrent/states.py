"""What a recurrent layer keeps of the past: its state, if it has one, and the last inputs of its convolution; as much
behind a million positions as behind one.

The state behind position p lies in slot p mod `STATES`, so that it never overwrites the one that it was made from: a
step may be made twice, as a recording does, and gives the same. The convolution's inputs lie in a ring too, as far
back as any of these states needs them. Nothing here depends on where a row begins: what is padded has left no trace.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm.spec import Recurrent

STATES = 2


class StateCache:
    """fp32 states `[B, states, H, K, V]`, and inputs `[B, slots, C]` of the convolution."""

    ring = None

    def __init__(
        self,
        spec: Recurrent,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.spec = spec
        heads = self.shape(spec, batch)[1:]
        self.state = torch.zeros((batch, STATES, *heads), dtype=torch.float32, device=device)
        self.inputs = torch.zeros((batch, *self.of_inputs(spec)), dtype=dtype, device=device)

    @staticmethod
    def shape(spec: Recurrent, batch: int) -> tuple[int, int, int, int]:
        """Of the state behind one position, `[B, H, K, V]`."""
        return batch, *spec.state

    @staticmethod
    def of_inputs(spec: Recurrent) -> tuple[int, int]:
        """Of what is kept of the inputs: the conv_kernel - 1 before each position whose state is kept."""
        return STATES + spec.conv_kernel - 2, spec.channels

    @classmethod
    def nbytes(cls, spec: Recurrent, capacity: int, width: int) -> int:
        """Of one row, with inputs of `width` bytes, whatever the capacity: what is held, and what a step reads and
        writes."""
        return 4 * STATES * math.prod(spec.state) + width * math.prod(cls.of_inputs(spec))

    def following(self, first: int | Tensor) -> Tensor:
        """The position of the first token, as int64 `[B]`; where that is the first of all, nothing is kept any more."""
        if not isinstance(first, int):
            return first
        if first == 0:
            self.state.zero_()
            self.inputs.zero_()
        return torch.full((len(self.state),), first, device=self.state.device)

    def before(self, first: int) -> tuple[Tensor, Tensor]:
        """What the positions from `first` on follow: the inputs before them, in order, `[B, conv_kernel - 1, C]`, and
        the state behind them, `[B, H, K, V]`."""
        self.following(first)
        return self.inputs[:, self._slots(first, self.spec.conv_kernel - 1)], self.state[:, (first - 1) % STATES]

    def put_inputs(self, inputs: Tensor, first: int) -> None:
        """Store `[B, T, C]` of the positions from `first` on, as many of the last as are kept."""
        kept = min(inputs.shape[1], self.inputs.shape[1])
        self.inputs[:, self._slots(first + inputs.shape[1], kept)] = inputs[:, -kept:]

    def put_state(self, state: Tensor, position: int) -> None:
        """Store `[B, H, K, V]` behind a position."""
        self.state[:, position % STATES] = state

    def _slots(self, end: int, count: int) -> Tensor:
        """Where the inputs of the `count` positions before `end` lie."""
        return torch.arange(end - count, end, device=self.inputs.device) % self.inputs.shape[1]
