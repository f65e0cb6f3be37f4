"""Norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormCast = Literal["before_weight", "after_weight"]


@dataclass(frozen=True)
class Norm:
    """RMSNorm, y = (offset + w) * x / rms(x), computed in fp32 (Zhang & Sennrich, arXiv:1910.07467).

    `cast` says where the value is rounded to the model's dtype: before the product with the weight (the family of
    Llama) or after it. The two differ in over a quarter of all bf16 outputs. Not `affine`: without w.
    """

    eps: float
    offset: float = 0.0
    cast: NormCast = "before_weight"
    affine: bool = True


@dataclass(frozen=True)
class LayerNorm:
    """y = (offset + w) * (x - mean(x)) / std(x) + b, computed in fp32 (Ba et al., arXiv:1607.06450); not `affine`:
    without the factor and b, no `bias`: without b."""

    eps: float
    affine: bool = True
    bias: bool = True
    offset: float = 0.0
