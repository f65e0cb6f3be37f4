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

    @property
    def channels(self) -> int:
        """That its convolution sees."""
        return 2 * self.num_k_heads * self.k_dim + self.num_v_heads * self.v_dim

    @property
    def state(self) -> tuple[int, int, int]:
        """The sizes of the state behind one position, [H, K, V]."""
        return self.num_v_heads, self.k_dim, self.v_dim


@dataclass(frozen=True)
class GatedConv:
    """A short convolution between two gates (Liquid AI, LFM2): b, c, u = W x;  y = W_out (c * conv(b * u)), where each
    of `channels` is a weighted sum over the last `conv_kernel` positions. All that it keeps are these."""

    channels: int
    conv_kernel: int

    @property
    def state(self) -> tuple[int, int, int]:
        """None besides what its convolution sees."""
        return 0, 0, 0


Recurrent = GatedDeltaNet | GatedConv
