"""Mamba, a selective scan (Gu and Dao, arXiv:2312.00752): each channel has a state `[N]`, each token sets the step.

    x, z = W_in u;  x = silu(conv(x));  r, B, C = norm(W_x x);  d = softplus(W_d r + t)
    S_n <- e^(-d e^A_n) S_n + d x B_n;  y = Σ_n S_n C_n + D x;  output = W_out (y * silu(z))

`ops/selective.py` has the arithmetic.

Shapes: B batch, T new tokens, E hidden size, I channels, N numbers of a channel's state, R values of r.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.attention import Step
from minillm.model.linear import Linear
from minillm.model.norm import norm
from minillm.model.recurrent.stateful import Given, ShortConv, Stateful
from minillm.model.recurrent.states import StateCache
from minillm.ops import Ops
from minillm.spec import SelectiveScan as Spec


class SelectiveScan(Stateful):
    """x `[B, T, E]` -> `[B, T, E]`."""

    FP32 = ("decay", "skip")  # as in Mamba 2

    def __init__(self, spec: Spec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.ops = ops
        inner = spec.channels
        self.xz = Linear(hidden_size, {"x": inner, "z": inner}, ops, bias=spec.bias)
        self.conv = ShortConv({"x": inner}, spec.conv_kernel, ops, bias=spec.conv_bias)
        self.dbc = Linear(inner, spec.parts, ops)
        self.d_norm, self.b_norm, self.c_norm = (norm(spec.norm, size, ops) for size in spec.parts.values())
        self.step = Linear(spec.step_rank, inner, ops, bias=True)
        self.decay = nn.Parameter(torch.zeros(spec.state_size, inner, dtype=torch.float32))
        self.skip = nn.Parameter(torch.zeros(inner, dtype=torch.float32))
        self.output = Linear(inner, hidden_size, ops, bias=spec.bias)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        made = self.xz(x)
        if step.real is not None:
            made = made * step.real
        return self.output(self.over((made,), step, cache))

    def one(self, given: Given, cache: StateCache, position_B: Tensor, rows: Tensor | None = None) -> Tensor:
        new, z = given[0].chunk(2, dim=-1)
        x = self.ops.short_conv_step(new, self.conv.weight, self.conv.bias, cache.inputs, position_B, rows)
        return self.ops.selective_step(x, z, *self._read(x), self.decay, self.skip, cache.state, position_B, rows)

    def several(self, given: Given, cache: StateCache | None, first: int, real: Tensor | None = None) -> Tensor:
        new, z = given[0].chunk(2, dim=-1)
        inputs, state = self.before(new, cache, first)
        x = self.conv(inputs)
        if real is not None:  # what is not there leaves no trace, though a convolution has a bias
            x = x * real
        y, state = self.ops.selective_scan(x, z, *self._read(x), self.decay, self.skip, state)
        if cache is not None:
            cache.put_state(state, first + x.shape[1] - 1)
        return y

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """d fp32 `[B, T, I]`, B and C `[B, T, N]` of x `[B, T, I]`."""
        ranks = self.ops.ranks  # each has some of the channels, on both sides of the sum
        made = ranks.entered(ranks.total(self.dbc(x)))
        d, b, c = made.split(list(self.spec.parts.values()), dim=-1)
        return F.softplus(self.step(self.d_norm(d)).float()), self.b_norm(b), self.c_norm(c)
