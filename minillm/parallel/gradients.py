"""What ranks that share layers exchange in the forward and in the backward pass (Shoeybi et al., arXiv:1909.08053).

    x -> entered -> each rank's part -> total -> …      forward: as it is; the sum
    sum <- entered <- each rank's part <- total <- dy    back: the sum; as it is

Between the two, every rank has only its part of a gradient; before and after them all ranks have all of it. So if every
rank holds a parameter whole, its gradient is the sum over ranks between the two (routers, norms of q and k, latents),
and that of any rank elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm.ops.ranks import Alone
from minillm.parallel.split import cut

Way = Callable[[Tensor], Tensor]


class Several(Alone):
    """Ranks, `wide` of which share each layer; subclasses say how they exchange values."""

    def summed(self, y: Tensor) -> Tensor:
        """The sum over ranks, which may reuse the memory of y."""
        raise NotImplementedError

    def beside(self, part: Tensor, size: int) -> Tensor:
        """The ranks' shares of the last dimension, concatenated."""
        raise NotImplementedError

    def total(self, y: Tensor) -> Tensor:
        return self._crosses(y, self.summed, _as_it_is)

    def entered(self, x: Tensor) -> Tensor:
        return self._crosses(x, _as_it_is, self.summed)

    def alike(self, y: Tensor) -> Tensor:
        return self._crosses(y, _as_it_is, lambda dy: dy / self.wide)

    def joined(self, part: Tensor, size: int) -> Tensor:
        own = slice(*cut(size, self.wide, self.rank % self.wide))
        return self._crosses(part, lambda part: self.beside(part, size), lambda dy: dy[..., own])

    def _crosses(self, x: Tensor, forth: Way, back: Way) -> Tensor:
        if self.wide == 1:
            return x
        made: Tensor = _Crossed.apply(x, forth, back) if torch.is_grad_enabled() else forth(x)
        return made


def _as_it_is(x: Tensor) -> Tensor:
    return x


class _Crossed(torch.autograd.Function):
    """`forth` in the forward and `back` in the backward pass, each on a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Way, back: Way) -> Tensor:
        ctx.back = back
        return forth(x.clone())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(dy.clone()), None, None
