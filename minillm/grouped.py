"""The experts of a layer, fast on a CPU: tokens sorted by expert once, then one product per expert that has any.

A decode step of one token is a row of matrix-vector products, each reading its weights once. Same signature and result
as `reference.experts`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.linear import linear
from minillm.reference import ExpertMatrices, gated_act
from minillm.spec import Activation


def experts(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: ExpertMatrices, down: ExpertMatrices, activation: Activation
) -> Tensor:
    """x `[N, H]`, chosen int64 and weights fp32 `[N, k]` -> `[N, H]`; see `reference.experts`."""
    top_k = chosen.shape[1]
    picks = chosen.flatten()  # pick p belongs to token p // k
    order = picks.argsort(stable=True)
    tokens, scales = order // top_k, weights.flatten()[order, None]
    present, counts = picks.unique(return_counts=True)
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    start = 0
    for expert, count in zip(present.tolist(), counts.tolist(), strict=True):
        rows = tokens[start : start + count]
        hidden = gated_act(linear(x[rows], gate_up[expert]), activation)
        total.index_add_(0, rows, linear(hidden, down[expert]) * scales[start : start + count])
        start += count
    return total.to(x.dtype)
