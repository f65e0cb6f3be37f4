"""Feed-forward networks: gated (Shazeer, arXiv:2002.05202), y = W_down (act(W_gate x) * W_up x), and plain,
y = W_down act(W_up x)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm import spec
from minillm.model.linear import Linear
from minillm.ops import Ops, ranks
from minillm.ops.activations import activate, xielu
from minillm.ops.reference import above_quantile


class GatedMLP(nn.Module):
    """x `[B, T, E]` -> `[B, T, E]`, through `intermediate_size` values; gate and up are one product."""

    def __init__(self, mlp: spec.GatedMLP, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = mlp
        self.ops = ops
        parts = {"gate": mlp.intermediate_size, "up": mlp.intermediate_size}
        self.gate_up = Linear(hidden_size, parts, ops, bias=mlp.bias)
        self.down = Linear(mlp.intermediate_size, hidden_size, ops, bias=mlp.bias)

    def forward(self, x: Tensor, change: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """With a `change` of gate and up side by side, and `weights` `[B, T, n]` of n equal parts of the rest."""
        gate_up = self.gate_up(x) if change is None else self.gate_up(x) + change
        inner = self.ops.gated_act(self.thinned(gate_up), self.spec.activation)
        if weights is not None:
            parts = inner.unflatten(-1, (weights.shape[-1], -1))
            inner = (parts * weights.to(inner.dtype).unsqueeze(-1)).flatten(-2)
        y = self.down(inner)
        return y if (factor := self.spec.factors[1]) == 1 else y * factor

    def thinned(self, gate_up: Tensor) -> Tensor:
        """Gate and up side by side, `[..., 2 I]`, the gate with the spec's factor and sparsity."""
        if (factor := self.spec.factors[0]) != 1:
            gate, up = gate_up.chunk(2, dim=-1)
            gate_up = torch.cat((gate * factor, up), dim=-1)
        if not self.spec.sparsity:
            return gate_up
        gate, up = gate_up.chunk(2, dim=-1)
        if self.ops.ranks.wide == 1:
            kept = above_quantile(gate, self.spec.sparsity)
        else:
            kept = ranks.above_quantile(gate, self.spec.sparsity, self.ops.ranks)
        return torch.cat((kept, up), dim=-1)


class MLP(nn.Module):
    """x `[B, T, E]` -> `[B, T, E]`, through `intermediate_size` values."""

    def __init__(self, mlp: spec.MLP, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = mlp
        self.up = Linear(hidden_size, mlp.intermediate_size, ops, bias=mlp.bias)
        self.down = Linear(mlp.intermediate_size, hidden_size, ops, bias=mlp.bias)
        learned = isinstance(mlp.activation, spec.XIELU)
        self.above, self.below = (nn.Parameter(torch.zeros(1)) if learned else None for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activated(self.up(x)))

    def activated(self, x: Tensor) -> Tensor:
        """act(x), of any shape."""
        if isinstance(self.spec.activation, spec.XIELU):
            assert self.above is not None
            assert self.below is not None
            return xielu(x, self.above.to(x.dtype), self.below.to(x.dtype), self.spec.activation)
        return activate(x, self.spec.activation)
