"""Layers that keep one size of whatever came before: Gated DeltaNet, and the gated convolution at the end; state spaces
are in `residual/state_space.py`.

Gated DeltaNet (Yang et al., arXiv:2412.06464) keeps one matrix per head:

    q, k, v = conv(W_qkv x);  z = W_z x;  beta = factor sigmoid(W_b x);  g = -exp(decay) softplus(W_a x + step)
    S <- e^g S;  S <- S + k (beta (v - Sᵀ k))ᵀ;  o = Sᵀ q;  y = W_out [norm(o_h) silu(z_h) for each v head h]

The matrix S is as large behind a million positions as behind one. `ops/recurrent.py` has the arithmetic, for one
position and for many at once; `examples/delta_rule.py` derives it step by step.

Shapes: B batch, T new tokens, E hidden size, H v heads, K k_dim, V v_dim, C channels of q, k and v together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minillm.model.attention import Step
from minillm.model.linear import Linear
from minillm.model.pools import StatePool
from minillm.model.ragged import Ragged
from minillm.model.states import StateCache
from minillm.ops import Ops, recurrent
from minillm.spec import GatedConv as ConvSpec
from minillm.spec import GatedDeltaNet as Spec

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
        if self.bias is not None:
            return F.silu(recurrent.causal_conv(x, self.weight, self.bias))
        return self.ops.short_conv(x, self.weight)

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


class GatedConv(Stateful):
    """A short convolution between two gates: b, c, u = W x;  y = W_out (c * conv(b * u)). x `[B, T, E]` -> `[B, T, E]`;
    what is kept are the last products b * u."""

    def __init__(self, spec: ConvSpec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.ops = ops
        size, kernel = spec.channels, spec.conv_kernel
        self.bcu = Linear(hidden_size, dict.fromkeys("bcu", size), ops)
        self.conv = nn.Parameter(torch.empty(size, kernel))
        if self.conv.device.type != "meta":
            nn.init.normal_(self.conv, std=kernel**-0.5)
        self.output = Linear(size, hidden_size, ops)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        if step.real is not None:  # what is not there leaves no trace: b * u of it is zero
            x = x * step.real
        return self.output(self.over((self.bcu(x),), step, cache))

    def one(self, given: Given, cache: StateCache, position_B: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.ops.gated_conv_step(*given, self.conv, cache.inputs, position_B, rows)

    def several(self, given: Given, cache: StateCache | None, first: int, real: Tensor | None = None) -> Tensor:
        b, c, u = given[0].chunk(3, dim=-1)
        return c * recurrent.causal_conv(self.before(b * u, cache, first)[0], self.conv)
