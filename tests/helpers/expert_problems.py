"""Experts for the tests of their implementations: random matrices, a random routing, and the formula in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.spec import ClampedSwiGLU


def matrices(experts: int, hidden: int, inner: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """gate_up `[E, 2F, H]` and down `[E, H, F]` that keep a vector's size."""
    made = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(experts, 2 * inner, hidden, generator=made) * hidden**-0.5
    return gate_up, torch.randn(experts, hidden, inner, generator=made) * inner**-0.5


def routed(tokens: int, experts: int, top_k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Different experts for each token, and weights."""
    made = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=made).topk(top_k).indices, torch.rand(tokens, top_k, generator=made)


def formula(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    clamped: ClampedSwiGLU | None = None,
    biases: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Token by token in fp64."""
    rows, (inner, outer) = [], biases or (torch.zeros(gate_up.shape[:2]), torch.zeros(down.shape[:2]))
    for n, token in enumerate(x.double()):
        y = torch.zeros_like(token)
        for e, w in zip(chosen[n].tolist(), weights[n].double(), strict=True):
            gate, up = (gate_up[e].double() @ token + inner[e]).chunk(2)
            product = torch.nn.functional.silu(gate) * up
            if clamped:
                gate, up = gate.clamp(max=clamped.limit), up.clamp(-clamped.limit, clamped.limit)
                product = gate / (1 + (-clamped.alpha * gate).exp()) * (up + 1)
            y += w * (down[e].double() @ product + outer[e])
        rows.append(y)
    return torch.stack(rows)
