"""What recurrent layers share: how the tokens of a pass come to what is kept before them, and a short convolution.

Shapes: B batch, T new tokens, N tokens of many sequences, C channels, J taps of the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minillm.model.pools import StatePool
from minillm.model.ragged import Ragged, Step
from minillm.model.recurrent.states import StateCache
from minillm.ops import Ops

Given = tuple[Tensor, ...]


class ShortConv(nn.Module):
    """A causal convolution of each channel with a filter of its own, weight `[C, J]`, a bias if there is one, and SiLU;
    `parts` as in `Linear`."""

    def __init__(self, parts: dict[str, int], kernel: int, ops: Ops, bias: bool = False):
        super().__init__()
        self.ops = ops
        self.parts = parts
        self.weight = nn.Parameter(torch.empty(sum(parts.values()), kernel))
        self.bias = nn.Parameter(torch.zeros(sum(parts.values()))) if bias else None
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=kernel**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, J - 1 + T, C]`, the first J - 1 positions being those before -> `[B, T, C]`."""
        return self.ops.short_conv(x, self.weight, self.bias)

    def blocks(self, name: str) -> dict[str, int]:
        """The named row blocks of the weight, in order."""
        return self.parts


class Stateful(nn.Module):
    """A recurrent layer: how the tokens of a pass come to what is kept before them.

    `given` is what the products on the way in make of x, `[B, T, ...]` each; `one` goes a position on from a cache,
    `several` any number of positions.
    """

    spec: Any

    def over(self, given: Given, step: Step, cache: Any) -> Tensor:
        """y `[B, T, ...]` of all tokens of a pass."""
        if step.ragged is not None:
            return self._of_many(given, cache, step.ragged)
        if cache is not None and given[0].shape[1] == 1 and step.real is None:
            return self.one(given, cache, cache.following(step.first))
        assert isinstance(step.first, int), "only a single position is found in memory"
        return self.several(given, cache, step.first, step.real)

    def one(self, given: Given, cache: StateCache, position_B: Tensor, rows: Tensor | None = None) -> Tensor:
        """y `[B, 1, ...]` of one position of each row, or of these `rows` of the cache, int64 `[B]`."""
        raise NotImplementedError

    def several(self, given: Given, cache: StateCache | None, first: int, real: Tensor | None = None) -> Tensor:
        """y `[B, T, ...]` of the positions from `first` on, of which only the `real` ones are there, bool
        `[B, T, 1]`."""
        raise NotImplementedError

    def before(self, new: Tensor, cache: StateCache | None, first: int) -> tuple[Tensor, Tensor]:
        """The inputs of the convolution from conv_kernel - 1 before the `new` ones on, which the cache is given, and
        the state behind those before."""
        if cache is not None:
            past, state = cache.before(first)
            cache.put_inputs(new, first)
        else:
            past = new.new_zeros(len(new), self.spec.conv_kernel - 1, new.shape[-1])
            state = torch.zeros(StateCache.shape(self.spec, len(new)), device=new.device)
        return torch.cat((past, new), dim=1), state

    def _of_many(self, given: Given, pool: StatePool, ragged: Ragged) -> Tensor:
        """y `[1, N, ...]` of tokens of many sequences."""
        parts, n = [], ragged.singles
        if n:
            alone = tuple(each[0, :n, None] for each in given)
            parts.append(self.one(alone, pool, ragged.position_N, ragged.states).transpose(0, 1))
        for piece in ragged.pieces:
            assert piece.state is not None
            own = tuple(each[:, piece.tokens] for each in given)
            parts.append(self.several(own, pool.of_block(piece.state), piece.start))
        return torch.cat(parts, dim=1)
