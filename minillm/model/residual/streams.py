"""Several residual streams (AltUp, Baykal et al., arXiv:2301.13310; hyper-connections, Zhu et al., arXiv:2409.19606,
and Xie et al., arXiv:2512.24880), and a product of low rank beside attention (LAuReL, Menghani et al.,
arXiv:2411.07501).

    x_i = W_i x |x| / |W_i x|                          before the first layer; x_0 = x, |.| the root mean square
    z_j = x_j + sum_i C(r(x_0))_ji x_i                 predicted, before a layer
    x_j = z_j + (1 + c_j(r(y))) (y - z_0)              corrected by y, the layer's output for z_0
    x   = sum_i V_i x_i |x_0| / |V_i x_i| / S          after the last layer; V_0 x_0 = x_0

    r(u) = tanh(W norm(u) / E)

Hyper-connections, where a, b and C are computed from all streams (`spec.HyperConnections`):

    x_i = x                                            before the first layer
    x_j = b_j f(sum_i a_i x_i) + sum_i C_ij x_i        around attention, and around the feed-forward; or x_j for the sum
    x   = sum_i a_i x_i                                after the last layer, with an a of its own

Shapes: B batch, T tokens, S streams, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minillm.model.linear import Linear
from minillm.model.norm import Norm
from minillm.ops import Ops
from minillm.ops.reference import rms_norm
from minillm.spec import HyperConnections
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


class HyperStreams(nn.Module):
    """Into several streams and out of them: x `[B, T, E]` -> `[B, T, S, E]`, and back."""

    FP32 = ("mix", "shift", "scale")

    def __init__(self, spec: HyperConnections, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        if not spec.mean:
            self.mix = nn.Parameter(torch.zeros(spec.count, spec.count * hidden_size, dtype=torch.float32))
            self.shift = nn.Parameter(torch.zeros(spec.count, dtype=torch.float32))
            self.scale = nn.Parameter(torch.ones(1, dtype=torch.float32))

    def parted(self, x_BTE: Tensor) -> Tensor:
        """`[B, T, S, E]`, all of them x."""
        return x_BTE.unsqueeze(-2).repeat(1, 1, self.spec.count, 1)

    def merged(self, x_BTSE: Tensor) -> Tensor:
        """The mean, or weighted sum `[B, T, E]`, of what the streams end as."""
        if self.spec.mean:
            return x_BTSE.mean(-2)
        made = _of_all(x_BTSE, self.mix, self.spec)
        return summed(x_BTSE, torch.sigmoid(made * self.scale + self.shift) + self.spec.eps)


class HyperConnection(nn.Module):
    """What one part of a layer does to the streams around its own work."""

    FP32 = ("mix", "shift", "scale")

    def __init__(self, spec: HyperConnections, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.mix = nn.Parameter(torch.zeros(sum(spec.parts), spec.count * hidden_size, dtype=torch.float32))
        self.shift = nn.Parameter(torch.zeros(sum(spec.parts), dtype=torch.float32))
        self.scale = nn.Parameter(torch.ones(len(spec.parts), dtype=torch.float32))

    def forward(self, x_BTSE: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The input of the part, `[B, T, E]`, and a function from its output to the new streams."""
        a, b, c = self.shares(x_BTSE)

        def mixed(y_BTE: Tensor) -> Tensor:
            if c is None:  # rounded once, behind the sum
                return (b.unsqueeze(-1) * y_BTE.unsqueeze(-2) + x_BTSE).to(x_BTSE.dtype)
            b_, c_ = b.to(x_BTSE.dtype).unsqueeze(-1), c.to(x_BTSE.dtype).transpose(-1, -2)
            return b_ * y_BTE.unsqueeze(-2) + c_ @ x_BTSE

        return summed(x_BTSE, a), mixed

    def shares(self, x_BTSE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """a and b `[B, T, S]` and, where streams are mixed, C `[B, T, S, S]`, fp32."""
        spec, n = self.spec, self.spec.count
        parts = [each.split(spec.parts, -1) for each in (_of_all(x_BTSE, self.mix, spec), self.shift)]
        a, b, *c = (made * scale + shift for made, shift, scale in zip(*parts, self.scale, strict=True))
        a, b = torch.sigmoid(a) + spec.eps, spec.most * torch.sigmoid(b)
        if not c:
            return a, b + spec.eps, None
        return a, b, balanced(c[0].unflatten(-1, (n, n)).softmax(-1) + spec.eps, spec.rounds, spec.eps)


def balanced(c: Tensor, rounds: int, eps: float) -> Tensor:
    """Positive matrices `[..., S, S]` whose rows and columns come to sum to about 1 (Sinkhorn and Knopp, 1967): columns
    are divided by their sums, then rows and columns in turn."""
    c = c / (c.sum(-2, keepdim=True) + eps)
    for _ in range(rounds - 1):
        c = c / (c.sum(-1, keepdim=True) + eps)
        c = c / (c.sum(-2, keepdim=True) + eps)
    return c


def summed(x_BTSE: Tensor, share_BTS: Tensor) -> Tensor:
    """sum_i share_i x_i, in fp32 -> `[B, T, E]` in x's dtype."""
    return (share_BTS.unsqueeze(-1) * x_BTSE).sum(-2).to(x_BTSE.dtype)


def _of_all(x_BTSE: Tensor, mix: Tensor, spec: HyperConnections) -> Tensor:
    """W norm(x), x all streams concatenated, in fp32."""
    return nn.functional.linear(rms_norm(x_BTSE.flatten(-2).float(), None, spec.norm.eps), mix.float())


def streams(spec: StreamsSpec | HyperConnections | None, hidden_size: int, ops: Ops) -> Streams | HyperStreams | None:
    """What goes into the streams of a model and out of them; None where there is one."""
    if spec is None:
        return None
    if isinstance(spec, HyperConnections):
        return HyperStreams(spec, hidden_size, ops)
    return Streams(spec, hidden_size, ops)
