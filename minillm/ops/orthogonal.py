"""U Vᵀ of a matrix U S Vᵀ, nearly: five steps of Newton and Schulz with coefficients that bring small singular values
up fast (Jordan et al., Muon, 2024; Liu et al., arXiv:2502.16982)."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS, NEWTON_STEPS, TINY = (3.4445, -4.775, 2.0315), 5, 1e-7


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix `[O, I]` with its singular values made 1, nearly."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=TINY)
    for _ in range(NEWTON_STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).float()
