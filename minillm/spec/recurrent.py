"""Layers that keep a state of one size in place of all positions."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.spec.ffn import Activation
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
class ChannelDelta:
    """Kimi Delta Attention (arXiv:2510.26692): like `GatedDeltaNet` with equally many heads of k and v, all of head_dim
    values, but each value of a key decays at its own rate, S <- diag(e^g) S, and the output of each head is
    norm(o) * sigmoid(W x), computed in fp32.

    With y = W x + t, A learned per head and t per value, g = -e^A softplus(y); with a negative `bound` instead
    g = bound * sigmoid(e^A y). `rank`: each of the two W is the product of two matrices with `rank` values in between.
    """

    num_heads: int
    head_dim: int
    conv_kernel: int
    norm: Norm
    rank: int | None = None
    bound: float | None = None

    @property
    def inner(self) -> int:
        """The values of all heads."""
        return self.num_heads * self.head_dim

    @property
    def parts(self) -> dict[str, int]:
        """The rows of the input product: f for g, z for the gate, b for beta."""
        made = dict.fromkeys(("f", "z"), self.rank or self.inner)
        return {**dict.fromkeys("qkv", self.inner), **made, "b": self.num_heads}

    @property
    def channels(self) -> int:
        """That its convolution sees."""
        return 3 * self.inner

    @property
    def state(self) -> tuple[int, int, int]:
        """The sizes of the state behind one position, [H, K, V]."""
        return self.num_heads, self.head_dim, self.head_dim


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


@dataclass(frozen=True)
class StateSpace:
    """A state space whose inputs say how much of it stays (Dao and Gu, arXiv:2405.21060): for each head, of x `[P]`,

        S <- e^(-d e^A) S + d B xᵀ;  y = Sᵀ C + D x

    with d = softplus(d + t) within `limits` (from, to; None: without end) and learned numbers A, t and D for each head.
    z, x, B, C and d are parts of one product, each times its one of `factors`; x, B and C go through a causal
    convolution over `conv_kernel` positions and SiLU. B and C `[state_size]` of each of `num_groups` are those of
    num_heads / num_groups heads side by side. What the heads give is multiplied by silu(z), and then, if there is a
    `norm`, normalised by groups. `bias`: both products have one.
    """

    num_heads: int
    head_dim: int
    num_groups: int
    state_size: int
    conv_kernel: int
    norm: Norm | None
    conv_bias: bool = True
    bias: bool = False
    limits: tuple[float, float | None] = (0.0, None)
    factors: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)

    @property
    def parts(self) -> dict[str, int]:
        """The rows of the product on the way in."""
        inner, groups = self.num_heads * self.head_dim, self.num_groups * self.state_size
        return {"z": inner, "x": inner, "b": groups, "c": groups, "d": self.num_heads}

    @property
    def channels(self) -> int:
        """That its convolution sees."""
        return self.num_heads * self.head_dim + 2 * self.num_groups * self.state_size

    @property
    def state(self) -> tuple[int, int, int]:
        """The sizes of the state behind one position, [H, N, P]."""
        return self.num_heads, self.state_size, self.head_dim


@dataclass(frozen=True)
class SelectiveScan:
    """Mamba, a selective scan (Gu and Dao, arXiv:2312.00752): each of `channels` has a state of `state_size` numbers,
    each of which decays at its own rate:

        S_n <- e^(-d e^A_n) S_n + d x B_n;  y = Σ_n S_n C_n + D x

    x and z are halves of one product; x then goes through a causal convolution over `conv_kernel` positions and SiLU.
    A second product of x gives B and C, shared by all channels, and r of `step_rank` values; a third gives
    d = softplus(W r + t) for each channel. `norm`, with weights or without, is applied to r, B and C separately. y is
    multiplied by silu(z). `bias`: the first and the output product have one.
    """

    channels: int
    state_size: int
    step_rank: int
    conv_kernel: int
    norm: Norm | None = None
    conv_bias: bool = True
    bias: bool = False

    @property
    def parts(self) -> dict[str, int]:
        """The rows of the second product."""
        return {"d": self.step_rank, "b": self.state_size, "c": self.state_size}

    @property
    def state(self) -> tuple[int, int, int]:
        """The sizes of the state behind one position, [1, N, I]."""
        return 1, self.state_size, self.channels


@dataclass(frozen=True)
class GatedRecurrence:
    """The gated linear recurrence RG-LRU, with one number of state per channel (De et al., arXiv:2402.19427):

        a = e^(-8 softplus(L) sigmoid(r));  h <- a h + sqrt(1 - a²) sigmoid(i) x

    with a learned L for each channel. x and y are halves of one product; x then goes through a causal convolution over
    `conv_kernel` positions. r and i are block-diagonal products of x, with `num_blocks` blocks of `block_size`
    channels. h is multiplied by `activation`(y). All products have a bias, and so has the convolution.
    """

    num_blocks: int
    block_size: int
    conv_kernel: int
    activation: Activation

    @property
    def channels(self) -> int:
        """That its convolution sees."""
        return self.num_blocks * self.block_size

    @property
    def state(self) -> tuple[int, int, int]:
        """The sizes of the state behind one position, [1, 1, C]."""
        return 1, 1, self.channels


Recurrent = GatedDeltaNet | ChannelDelta | GatedConv | StateSpace | SelectiveScan | GatedRecurrence
