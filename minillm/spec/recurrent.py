"""Layers that keep a state of one size in place of all positions."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.spec.norm import Norm


@dataclass(frozen=True)
class GatedDeltaNet:
    """Linear attention whose state, a k_dim x v_dim matrix for each v head, forgets and is corrected (Yang et al.,
    arXiv:2412.06464): S <- e^g S;  S <- S + k (beta (v - Sᵀ k))ᵀ;  o = Sᵀ q, k and q of length 1.

    Each k head serves num_v_heads / num_k_heads v heads side by side. q, k and v come through a causal convolution over
    `conv_kernel` positions and SiLU. `beta_factor`: beta = beta_factor * sigmoid(w x); above 1 a state may change its
    sign. Each head's o goes through `norm`, times silu(W x).
    """

    num_k_heads: int
    num_v_heads: int
    k_dim: int
    v_dim: int
    conv_kernel: int
    norm: Norm
    beta_factor: float = 1.0
