"""Gated DeltaNet (Yang et al., arXiv:2412.06464): a layer that keeps one matrix per head.

    q, k, v = conv(W_qkv x);  z = W_z x;  beta = factor sigmoid(W_b x);  g = -exp(decay) softplus(W_a x + step)
    S <- e^g S;  S <- S + k (beta (v - Sᵀ k))ᵀ;  o = Sᵀ q;  y = W_out [norm(o_h) silu(z_h) for each v head h]

The matrix S is as large behind a million positions as behind one. `ops/recurrent.py` has the arithmetic, for one
position and for many at once; `examples/delta_rule.py` derives it step by step.

Shapes: B batch, T new tokens, E hidden size, H v heads, K k_dim, V v_dim, C channels of q, k and v together.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from minillm.model.attention import Step
from minillm.model.linear import Linear
from minillm.model.recurrent.stateful import Given, ShortConv, Stateful
from minillm.model.recurrent.states import StateCache
from minillm.ops import Ops, recurrent
from minillm.spec import GatedDeltaNet as Spec


class GatedDeltaNet(Stateful):
    """x `[B, T, E]` -> `[B, T, E]`."""

    FP32 = ("decay", "step")  # whatever the model's dtype: their exponentials span orders of magnitude

    def __init__(self, spec: Spec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.ops = ops
        keys, values = spec.num_k_heads * spec.k_dim, spec.num_v_heads * spec.v_dim
        qkv = {"q": keys, "k": keys, "v": values}
        self.qkvz = Linear(hidden_size, {**qkv, "z": values}, ops)
        self.ba = Linear(hidden_size, {"b": spec.num_v_heads, "a": spec.num_v_heads}, ops)
        self.conv = ShortConv(qkv, spec.conv_kernel, ops)
        self.decay = nn.Parameter(torch.zeros(spec.num_v_heads, dtype=torch.float32))
        self.step = nn.Parameter(torch.zeros(spec.num_v_heads, dtype=torch.float32))
        self.norm = nn.Parameter(torch.ones(spec.v_dim))
        self.output = Linear(values, hidden_size, ops)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        if step.real is not None:  # what is not there leaves no trace: q, k and v of it are zero
            x = x * step.real
        return self.output(self.over((self.qkvz(x), self.ba(x)), step, cache))

    def one(self, given: Given, cache: StateCache, position_B: Tensor, rows: Tensor | None = None) -> Tensor:
        held, kept = (self.conv.weight, self.decay, self.step, self.norm), (cache.inputs, cache.state, position_B)
        return self.ops.delta_step(*given, *held, *kept, self.spec.norm.eps, self.spec.beta_factor, rows)

    def several(self, given: Given, cache: StateCache | None, first: int, real: Tensor | None = None) -> Tensor:
        spec, (qkvz, ba) = self.spec, given
        qkv, z = qkvz.split((self.conv.weight.shape[0], spec.num_v_heads * spec.v_dim), dim=-1)
        g, beta = recurrent.gates(ba, self.decay, self.step, spec.beta_factor)
        inputs, state = self.before(qkv, cache, first)
        keys = spec.num_k_heads * spec.k_dim
        mixed = self.conv(inputs).split((keys, keys, z.shape[-1]), dim=-1)
        heads = zip(mixed, (spec.k_dim, spec.k_dim, spec.v_dim), strict=True)
        q, k, v = (rearrange(each, "B T (H D) -> B T H D", D=size) for each, size in heads)
        o = self._read((q, k, v, g, beta), state, first, cache)
        return self.ops.gated_rms_norm(o, z.unflatten(-1, o.shape[2:]), self.norm, spec.norm.eps).flatten(2)

    def _read(self, given: tuple[Tensor, ...], state: Tensor, first: int, cache: StateCache | None) -> Tensor:
        """o `[B, T, H, V]`; the cache is given the state behind the last position."""
        o, state = self.ops.delta_rule(*given, state)
        if cache is not None:
            cache.put_state(state, first + given[0].shape[1] - 1)
        return o
