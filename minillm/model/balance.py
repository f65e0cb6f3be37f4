"""What keeps the experts of a mixture evenly used in training: plain functions of what a router returned.

Shapes: N tokens, E experts, k chosen per token. `model(tokens, collect_routing=True)` gives both for each layer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expert_load(chosen: Tensor, num_experts: int) -> Tensor:
    """Choices that fell on each expert; chosen int64 `[N, k]` -> int64 `[E]`, which sums to N * k."""
    return torch.bincount(chosen.flatten(), minlength=num_experts)


def load_balancing_loss(logits: Tensor, chosen: Tensor) -> Tensor:
    """E * sum over e of f_e P_e, with f_e the choices of e per token and P_e the mean softmax probability of e.

    k when both are even over the experts, more where often chosen experts are also likely ones; the gradient goes
    through P only (Switch Transformer, arXiv:2101.03961, eq. 4, for k choices as in Mixtral). logits `[N, E]`, chosen
    int64 `[N, k]`, of one layer or of all layers one after the other; a scalar.
    """
    tokens, num_experts = logits.shape
    frequency = expert_load(chosen, num_experts) / tokens
    return num_experts * (frequency * logits.float().softmax(-1).mean(0)).sum()


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean of (log sum exp of a token's logits)², which keeps them small (ST-MoE, arXiv:2202.08906, eq. 5)."""
    return logits.float().logsumexp(-1).square().mean()


def updated_bias(bias: Tensor, load: Tensor, rate: float) -> Tensor:
    """b + rate * sign(mean load - load): balance without a loss (arXiv:2408.15664; DeepSeek-V3: rate 0.001).

    An expert with more than its share becomes harder to choose, without a gradient. bias fp32 `[E]`, load `[E]` as
    `expert_load` counts it in one batch; returns the new bias.
    """
    load = load.float()
    return bias + rate * torch.sign(load.mean() - load)
