"""What crosses between ranks that share layers, and what of it on the way back (Shoeybi et al., arXiv:1909.08053).

    x -> entered -> each rank's part -> total -> …      forward: as it is; the sum
    sum <- entered <- each rank's part <- total <- dy    back: the sum; as it is

Between the two, every rank has only its part of a gradient; before and behind them all have all of it. So a parameter
that lies whole in each rank between the two (routers, norms of q and k, latents) has the gradient that is the sum of
theirs, and one before or behind them that of any.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm.ops.ranks import Alone
from minillm.parallel.split import cut


class Several(Alone):
    """Ranks, of which `wide` share each layer; how they exchange something, others say."""

    def summed(self, y: Tensor) -> Tensor:
        """The sum of what each has, which may be in the memory of y."""
        raise NotImplementedError

    def beside(self, part: Tensor, size: int) -> Tensor:
        """Shares of the last dimension side by side."""
        raise NotImplementedError

    def total(self, y: Tensor) -> Tensor:
        if self.wide == 1:
            return y
        return _Total.apply(y, self) if torch.is_grad_enabled() else self.summed(y)

    def entered(self, x: Tensor) -> Tensor:
        return _Entered.apply(x, self) if self.wide > 1 and torch.is_grad_enabled() else x

    def alike(self, y: Tensor) -> Tensor:
        return _Alike.apply(y, self.wide) if self.wide > 1 and torch.is_grad_enabled() else y

    def joined(self, part: Tensor, size: int) -> Tensor:
        if self.wide == 1:
            return part
        return _Joined.apply(part, size, self) if torch.is_grad_enabled() else self.beside(part, size)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, ranks: Several) -> Tensor:
        return ranks.summed(y.clone())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


class _Entered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Several) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.summed(dx.clone()), None


class _Alike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, wide: int) -> Tensor:
        ctx.wide = wide
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy / ctx.wide, None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, size: int, ranks: Several) -> Tensor:
        ctx.own = slice(*cut(size, ranks.wide, ranks.rank % ranks.wide))
        return ranks.beside(part, size)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return dy[..., ctx.own], None, None
