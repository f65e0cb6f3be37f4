"""Kimi Delta Attention (arXiv:2510.26692): Gated DeltaNet in which each value of a key decays at its own rate.

    q, k, v = conv(W_qkv x);  beta = sigmoid(W_b x);  g = -exp(decay) softplus(W_f x + step), or bounded
    S <- diag(e^g) S;  S <- S + k (beta (v - Sᵀ k))ᵀ;  o = Sᵀ q
    y = W_out [norm(o_h) sigmoid((W_z x)_h) for each head h]

W_f and W_z may each be the product of two matrices, the first of which is fused with the other products of x.

Shapes: B batch, T new tokens, E hidden size, H heads of D values, R values between two matrices.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.attention import Step
from minillm.model.linear import Linear
from minillm.model.recurrent.stateful import Given, ShortConv, Stateful
from minillm.model.recurrent.states import StateCache
from minillm.ops import Ops, recurrent
from minillm.spec import ChannelDelta as Spec


class ChannelDelta(Stateful):
    """x `[B, T, E]` -> `[B, T, E]`."""

    FP32 = ("decay", "step")  # as in Gated DeltaNet

    def __init__(self, spec: Spec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.ops = ops
        self.qkvfzb = Linear(hidden_size, spec.parts, ops)
        self.f, self.z = (Linear(spec.rank, spec.inner, ops) if spec.rank else None for _ in range(2))
        self.conv = ShortConv(dict.fromkeys("qkv", spec.inner), spec.conv_kernel, ops)
        self.decay = nn.Parameter(torch.zeros(spec.num_heads, dtype=torch.float32))
        self.step = nn.Parameter(torch.zeros(spec.inner, dtype=torch.float32))
        self.norm = nn.Parameter(torch.ones(spec.head_dim))
        self.output = Linear(spec.inner, hidden_size, ops)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        if step.real is not None:  # what is not there leaves no trace: q, k and v of it are zero
            x = x * step.real
        qkv, f, z, b = self.qkvfzb(x).split((self.spec.channels, *list(self.spec.parts.values())[3:]), dim=-1)
        f, z = (f, z) if self.f is None or self.z is None else (self.f(f), self.z(z))
        return self.output(self.over((qkv, f, z, b), step, cache))

    def one(self, given: Given, cache: StateCache, position_B: Tensor, rows: Tensor | None = None) -> Tensor:
        rows = torch.arange(len(position_B), device=position_B.device) if rows is None else rows
        states = cache.state.shape[1]
        mixed = F.silu(recurrent.conv_step(given[0], self.conv.weight, cache.inputs, position_B, rows))
        y, made = self._made(mixed, given, cache.state[rows, (position_B - 1) % states])
        cache.state[rows, position_B % states] = made
        return y

    def several(self, given: Given, cache: StateCache | None, first: int, real: Tensor | None = None) -> Tensor:
        inputs, state = self.before(given[0], cache, first)
        y, made = self._made(self.conv(inputs), given, state)
        if cache is not None:
            cache.put_state(made, first + y.shape[1] - 1)
        return y

    def _made(self, mixed: Tensor, given: Given, state: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads give, `[B, T, H D]`, and the state behind the last position, of q, k and v as the convolution
        gives them."""
        _, f, z, b = given
        q, k, v = (each.unflatten(-1, (self.spec.num_heads, -1)) for each in mixed.chunk(3, dim=-1))
        g = recurrent.channel_gates(f, self.decay, self.step, self.spec.bound)
        o, made = self.ops.channel_rule(q, k, v, g, b.sigmoid(), state)
        opened = recurrent.opened_rms_norm(o, z.unflatten(-1, o.shape[2:]), self.norm, self.spec.norm.eps)
        return opened.flatten(2), made
