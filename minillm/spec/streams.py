"""What stands in place of the one residual sum x + f(x)."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.spec.norm import Norm


@dataclass(frozen=True)
class Streams:
    """AltUp (Baykal et al., arXiv:2301.13310): `count` residual streams side by side, of which each layer works on the
    first alone, while the others are moved along by coefficients that a token sets.

    With r(u) = tanh(W norm(u) / E), a layer sees z_0 of z_j = x_j + sum_i C(r(x_0))_ji x_i, makes y of it, and gives
    x_j = z_j + (1 + c_j(r(y))) (y - z_0). All streams start as products of the embedding and end as their mean.
    """

    count: int
    norm: Norm


@dataclass(frozen=True)
class LowRank:
    """LAuReL (Menghani et al., arXiv:2411.07501): beside attention, what it is given goes through a product of `rank`
    values, u + norm(A B u)."""

    rank: int
    norm: Norm
