"""The gated linear recurrence RG-LRU (De et al., Griffin, arXiv:2402.19427): one number of state for each channel.

    x = conv(W_x u);  r, i = sigmoid of block-diagonal products of x
    a = e^(-8 softplus(L) r);  h <- a h + sqrt(1 - a²) i x;  output = W_out (h * act(W_y u))

At the first position of a text sqrt(1 - a²) is 1.

Shapes: B batch, T new tokens, E hidden size, C channels in H blocks of W.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.attention import Step
from minillm.model.linear import Linear
from minillm.model.recurrent.stateful import Given, Stateful
from minillm.model.recurrent.states import StateCache
from minillm.ops import Ops, recurrent
from minillm.ops.activations import activate
from minillm.spec import GatedRecurrence as Spec

RATE = -8.0  # of the decay, where a gate is all open


class GatedRecurrence(Stateful):
    """x `[B, T, E]` -> `[B, T, E]`."""

    FP32 = ("decay",)

    def __init__(self, spec: Spec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.ops = ops
        size, width = spec.channels, spec.block_size
        self.yx = Linear(hidden_size, {"y": size, "x": size}, ops, bias=True)
        self.conv = nn.Parameter(torch.empty(size, spec.conv_kernel))
        # rows of each block's matrix, one block below the other
        self.opens, self.keeps = (nn.Parameter(torch.empty(size, width)) for _ in range(2))
        self.conv_bias, self.opens_bias, self.keeps_bias = (nn.Parameter(torch.zeros(size)) for _ in range(3))
        self.decay = nn.Parameter(torch.zeros(size, dtype=torch.float32))
        if self.conv.device.type != "meta":
            for each in (self.conv, self.opens, self.keeps):
                nn.init.normal_(each, std=each.shape[1] ** -0.5)
        self.output = Linear(size, hidden_size, ops, bias=True)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        made, positions = self.yx(x), step.positions
        if step.real is not None:
            made = made * step.real
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        begins = (positions == 0).expand(x.shape[:2]).unsqueeze(-1)
        return self.output(self.over((made, begins), step, cache))

    def one(self, given: Given, cache: StateCache, position_B: Tensor, rows: Tensor | None = None) -> Tensor:
        y, new = given[0].chunk(2, dim=-1)
        rows = torch.arange(len(new), device=new.device) if rows is None else rows
        x = recurrent.conv_step(new, self.conv, cache.inputs, position_B, rows, self.conv_bias)
        states = cache.state.shape[1]
        h, state = self._scanned(x, given[1], cache.state[rows, (position_B - 1) % states])
        cache.state[rows, position_B % states] = state
        return h * activate(y, self.spec.activation)

    def several(self, given: Given, cache: StateCache | None, first: int, real: Tensor | None = None) -> Tensor:
        y, new = given[0].chunk(2, dim=-1)
        inputs, state = self.before(new, cache, first)
        x = recurrent.causal_conv(inputs, self.conv, self.conv_bias)
        if real is not None:  # what is not there leaves no trace, though a convolution has a bias
            x = x * real
        h, state = self._scanned(x, given[1], state)
        if cache is not None:
            cache.put_state(state, first + x.shape[1] - 1)
        return h * activate(y, self.spec.activation)

    def _scanned(self, x: Tensor, begins: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """h `[B, T, C]` and the state behind the last position, of a state fp32 `[B, 1, 1, C]`; `begins` bool
        `[B, T, 1]`."""
        log_a = RATE * F.softplus(self.decay) * self._gate(x, self.keeps, self.keeps_bias).float()
        new = (-torch.expm1(2 * log_a)).sqrt().masked_fill(begins, 1.0)
        given = new * (x * self._gate(x, self.opens, self.opens_bias)).float()
        kept, now, found = log_a.exp().masked_fill(begins, 0.0), state[:, 0, 0], []
        for t in range(x.shape[1]):
            now = torch.addcmul(given[:, t], kept[:, t], now)
            found.append(now)
        return torch.stack(found, dim=1).to(x.dtype), now[:, None, None]

    def _gate(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """sigmoid(W x + b) of each block of channels, `[B, T, C]`."""
        blocks, width = self.spec.num_blocks, self.spec.block_size
        made = torch.einsum("bthi,hoi->btho", x.unflatten(-1, (blocks, width)), weight.view(blocks, width, width))
        return torch.sigmoid(made.flatten(2) + bias)
