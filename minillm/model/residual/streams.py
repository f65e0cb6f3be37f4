"""Several residual streams (AltUp, Baykal et al., arXiv:2301.13310), and a product of low rank beside attention
(LAuReL, Menghani et al., arXiv:2411.07501).

    x_i = W_i x |x| / |W_i x|                          before the first layer; x_0 = x, |.| the root mean square
    z_j = x_j + sum_i C(r(x_0))_ji x_i                 foreseen: what a layer starts from
    x_j = z_j + (1 + c_j(r(y))) (y - z_0)              corrected by y, what the layer made of z_0
    x   = sum_i V_i x_i |x_0| / |V_i x_i| / S          behind the last layer; V_0 x_0 = x_0

    r(u) = tanh(W norm(u) / E)

Shapes: B batch, T tokens, S streams, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm.model.linear import Linear
from minillm.model.norm import Norm
from minillm.ops import Ops
from minillm.spec import LowRank as LowRankSpec
from minillm.spec import Streams as StreamsSpec

SMALLEST = 1e-5  # of a mean square that is divided by


class Streams(nn.Module):
    """Into several streams and out of them: x `[B, T, E]` -> `[B, T, S, E]`, and back."""

    def __init__(self, spec: StreamsSpec, hidden_size: int, ops: Ops):
        super().__init__()
        self.begin, self.end = (
            nn.ModuleList(Linear(hidden_size, hidden_size, ops) for _ in range(1, spec.count)) for _ in range(2)
        )

    def parted(self, x_BTE: Tensor) -> Tensor:
        """`[B, T, S, E]`, all as long as x."""
        return torch.stack([x_BTE, *(_as_long(x_BTE, product(x_BTE)) for product in self.begin)], dim=-2)

    def merged(self, x_BTSE: Tensor) -> Tensor:
        """The mean `[B, T, E]` of what the streams end as, all as long as the first."""
        first, *others = x_BTSE.unbind(-2)
        ended = [_as_long(first, product(x)) for product, x in zip(self.end, others, strict=True)]
        return torch.stack([first, *ended]).mean(0)


def _as_long(x: Tensor, y: Tensor) -> Tensor:
    length = y.square().mean(-1, keepdim=True).clamp(min=SMALLEST).sqrt()
    return y * x.square().mean(-1, keepdim=True).sqrt() / length


class LayerStreams(nn.Module):
    """What one layer does to the streams around its own work."""

    def __init__(self, spec: StreamsSpec, hidden_size: int, ops: Ops):
        super().__init__()
        self.norm = Norm(spec.norm, hidden_size, ops)
        self.router = Linear(hidden_size, spec.count, ops)
        self.predict = Linear(spec.count, spec.count**2, ops)
        self.correct = Linear(spec.count, spec.count, ops)
        self.scale = nn.Parameter(torch.ones(hidden_size))

    def foreseen(self, x_BTSE: Tensor) -> Tensor:
        """z `[B, T, S, E]`."""
        mixed = self.predict(self._routed(x_BTSE[..., 0, :])).unflatten(-1, (x_BTSE.shape[-2],) * 2)
        return x_BTSE + mixed @ x_BTSE

    def corrected(self, z_BTSE: Tensor, y_BTE: Tensor) -> Tensor:
        """x `[B, T, S, E]`, of what the layer made of the first of z."""
        share_BTS1 = (self.correct(self._routed(y_BTE)) + 1).unsqueeze(-1)
        return z_BTSE + share_BTS1 * (y_BTE.unsqueeze(-2) - z_BTSE[..., :1, :])

    def first(self, x_BTSE: Tensor) -> Tensor:
        """The first `[B, T, E]`, times a learned factor: what the layer's own embeddings are told."""
        return x_BTSE[..., 0, :] * self.scale

    def told(self, x_BTSE: Tensor, more_BTE: Tensor) -> Tensor:
        """All but the first take what the layer's own embeddings add."""
        first, others = x_BTSE[..., :1, :], x_BTSE[..., 1:, :]
        return torch.cat((first, others + more_BTE.unsqueeze(-2)), dim=-2)

    def _routed(self, u_BTE: Tensor) -> Tensor:
        return torch.tanh(self.router(self.norm(u_BTE) * u_BTE.shape[-1] ** -1).float()).to(u_BTE.dtype)


class LowRank(nn.Module):
    """u `[B, T, E]` -> u + norm(A B u)."""

    def __init__(self, spec: LowRankSpec, hidden_size: int, ops: Ops):
        super().__init__()
        self.down = Linear(hidden_size, spec.rank, ops)
        self.up = Linear(spec.rank, hidden_size, ops)
        self.norm = Norm(spec.norm, hidden_size, ops)

    def forward(self, u: Tensor) -> Tensor:
        return u + self.norm(self.up(self.down(u)))
