"""Mamba 2 (Dao and Gu, arXiv:2405.21060): a state `[N, P]` for each head, which an input says how long to keep.

    z, x, B, C, d = W_in u;  x, B, C = silu(conv(x, B, C));  d = softplus(d + t)
    S <- e^(-d e^A) S + d B xᵀ;  y = Sᵀ C + D x;  output = W_out norm(y * silu(z))

`ops/state_space.py` has the arithmetic, for one position and, in chunks, for many.

Shapes: B batch, T new tokens, E hidden size, H heads of P values, G groups of N, C channels of x, B and C together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minillm.model.attention import Step
from minillm.model.linear import Linear
from minillm.model.recurrent.stateful import Given, ShortConv, Stateful
from minillm.model.recurrent.states import StateCache
from minillm.ops import Ops, state_space
from minillm.spec import StateSpace as Spec


class StateSpace(Stateful):
    """x `[B, T, E]` -> `[B, T, E]`."""

    FP32 = ("decay", "step", "skip")  # as in Gated DeltaNet

    def __init__(self, spec: Spec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.ops = ops
        inner = spec.num_heads * spec.head_dim
        self.zxbcd = Linear(hidden_size, spec.parts, ops, bias=spec.bias)
        seen = {part: spec.parts[part] for part in "xbc"}
        self.conv = ShortConv(seen, spec.conv_kernel, ops, bias=spec.conv_bias)
        self.decay, self.step, self.skip = (
            nn.Parameter(torch.zeros(spec.num_heads, dtype=torch.float32)) for _ in range(3)
        )
        self.norm = nn.Parameter(torch.ones(inner)) if spec.norm else None
        self.eps = spec.norm.eps if spec.norm else 0.0
        self.output = Linear(inner, hidden_size, ops, bias=spec.bias)
        self._factors: Tensor | None = None  # of each row of the first product, once they were asked for

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        made = self._scaled(self.zxbcd(x))
        if step.real is not None:
            made = made * step.real
        return self.output(self.over((made,), step, cache))

    def one(self, given: Given, cache: StateCache, position_B: Tensor, rows: Tensor | None = None) -> Tensor:
        held = self.conv.weight, self.conv.bias, (self.decay, self.step, self.skip), self.norm
        kept = cache.inputs, cache.state, position_B, self.spec.num_groups, self.spec.limits, self.eps
        return self.ops.state_step(*given, *held, *kept, rows)

    def several(self, given: Given, cache: StateCache | None, first: int, real: Tensor | None = None) -> Tensor:
        spec, parts = self.spec, self.spec.parts
        z, new, d = given[0].split((parts["z"], spec.channels, spec.num_heads), dim=-1)
        inputs, state = self.before(new, cache, first)
        mixed = self.conv(inputs)
        if real is not None:  # what is not there leaves no trace, though a convolution has a bias
            mixed = mixed * real
        x, b, c = mixed.split([parts[part] for part in "xbc"], dim=-1)
        x, b, c = x.unflatten(-1, (spec.num_heads, -1)), *(each.unflatten(-1, (spec.num_groups, -1)) for each in (b, c))
        late = state_space.steps(d, self.step, spec.limits)
        y, state = self.ops.state_scan(x, late, self.decay, b, c, self.skip, state)
        if cache is not None:
            cache.put_state(state, first + x.shape[1] - 1)
        return state_space.gated_group_norm(y.flatten(2), z, self.norm, spec.num_groups, self.eps)

    def _scaled(self, made: Tensor) -> Tensor:
        """The first product, its parts times their factors."""
        if all(each == 1 for each in self.spec.factors):
            return made
        if self._factors is None or (self._factors.device, self._factors.dtype) != (made.device, made.dtype):
            counts = zip(self.spec.factors, self.spec.parts.values(), strict=True)
            rows = [torch.full((count,), factor) for factor, count in counts]
            self._factors = torch.cat(rows).to(made)
        return made * self._factors
