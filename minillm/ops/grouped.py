"""The experts of a layer as one product for each expert that any token chose. Same signature and result as
`reference.experts`, for many tokens on a CPU: they are sorted by expert once, and summed up in one op."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops.reference import ExpertMatrices, ExpertProducts, expert_product, gated_act
from minillm.spec import Gating, Ungated

# Products have a multiple of so many rows: oneDNN compiles a kernel for each number of rows it meets, and every prompt
# would bring new ones.
ROWS = 16


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: ExpertMatrices | ExpertProducts,
    down: ExpertMatrices | ExpertProducts,
    activation: Gating | Ungated,
    biases: tuple[Tensor, Tensor] | None = None,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """x `[N, H]`, chosen int64 and weights fp32 `[N, k]` -> `[N, H]`; see `reference.experts`. Weights are rounded to
    x's dtype, as the experts' results are."""
    picks = chosen.flatten()  # pick p belongs to token p // k
    order = picks.argsort(stable=True)
    results = []
    for expert, tokens in enumerate((order // chosen.shape[1]).split(torch.bincount(picks).tolist())):
        if len(tokens):
            rows = x[F.pad(tokens, (0, -len(tokens) % ROWS))]
            inner, outer = (bias[expert] for bias in biases) if biases else (None, None)
            hidden = gated_act(expert_product(rows, gate_up, expert, inner), activation)
            results.append(expert_product(hidden, down, expert, outer)[: len(tokens)])
    # For each token n the sum over k of weights[n, k] * y[rows[n, k]], in fp32: an embedding bag.
    rows, y = order.argsort().view_as(chosen), torch.cat(results)
    return F.embedding_bag(rows, y, mode="sum", per_sample_weights=weights.to(y.dtype))
