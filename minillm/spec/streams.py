"""What stands in place of the one residual sum x + f(x)."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.spec.norm import Norm


@dataclass(frozen=True)
class Streams:
    """AltUp (Baykal et al., arXiv:2301.13310): `count` residual streams. Each layer works on the first only; the others
    are predicted and corrected with coefficients that depend on the token.

    With r(u) = tanh(W norm(u) / E), the streams are predicted as z_j = x_j + sum_i C(r(x_0))_ji x_i, the layer computes
    y from z_0, and x_j = z_j + (1 + c_j(r(y))) (y - z_0). All streams start as products of the embedding and end as
    their mean.
    """

    count: int
    norm: Norm


@dataclass(frozen=True)
class HyperConnections:
    """`count` residual streams (Zhu et al., arXiv:2409.19606). Each part of a layer reads a learned mix of them and
    writes to all of them, and they are mixed by a matrix that amplifies nothing (Xie et al., arXiv:2512.24880).

    With f = W norm(x), x all streams concatenated, a part computes y from sum_i a_i x_i, and then
    x_j = b_j y + sum_i C_ij x_i: a = sigmoid(s f + t) + eps, b = `most` sigmoid(s f + t), and C is a softmax over each
    row, plus eps. Then its columns, and in turn rows and columns, are divided by their sums plus eps, the columns
    `rounds` times (Sinkhorn and Knopp). All streams start as the embedding; they end as one more sum weighted by a, or
    as their `mean`. With 0 rounds there is no C: each stream is added to, x_j = b_j y + x_j, and b too has eps (Hy4).
    """

    count: int
    norm: Norm
    rounds: int = 20
    eps: float = 1e-6
    mean: bool = False
    most: float = 2.0

    @property
    def parts(self) -> tuple[int, ...]:
        """How many values a, b and C have."""
        return (self.count, self.count, *([self.count**2] if self.rounds else []))


@dataclass(frozen=True)
class LowRank:
    """LAuReL (Menghani et al., arXiv:2411.07501): beside attention, its input u goes through a low-rank product of
    `rank` values, u + norm(A B u)."""

    rank: int
    norm: Norm
