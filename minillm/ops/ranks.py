"""The processes that hold a model between them: here the one that holds all of it, where nothing has to be done; those
of several are in `minillm/parallel/`. And what is computed over values of which each rank has some.

Shapes: N the values of one rank, which need not be as many as those of another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.spec import NormCast


class Alone:
    """What a model asks of its ranks. Each holds whole all that is not split (`parallel/split.py`)."""

    count, rank = 1, 0
    wide = 1  # ranks that share each layer: all, or those of a stage
    staged = False  # whether each has some of the layers, not some of each

    def total(self, y: Tensor) -> Tensor:
        """The sum over the ranks of what each has computed of the same tensor."""
        return y

    def entered(self, x: Tensor) -> Tensor:
        """x, which all have, where each goes on with a part of its own: what goes back is the sum of theirs."""
        return x

    def alike(self, y: Tensor) -> Tensor:
        """y, which all have made of what they `entered`, before it meets a sum: what goes back of it counts once."""
        return y

    def joined(self, part: Tensor, size: int) -> Tensor:
        """`[..., size]` of each rank's share of the last dimension, side by side."""
        return part

    def through(self, x: Tensor, layers: Callable[[Tensor], Tensor]) -> Tensor:
        """What all layers make of hidden states, of which these are the ones here."""
        return layers(x)

    def flowing(self) -> AbstractContextManager[None]:
        """Passes one behind the other; what `through` gives of each is there when all have begun."""
        return contextlib.nullcontext()

    def tell(self, what: str, tensors: Sequence[Tensor] = (), **given: Any) -> None:
        """Have the other ranks do what this one does next; `given` is what JSON has."""

    def forget(self, number: int) -> None:
        """Have them give up what they have under a number."""

    def undisturbed(self) -> AbstractContextManager[None]:
        """A pass from its beginning to its end."""
        return contextlib.nullcontext()


ALONE = Alone()


def mean(x32: Tensor, ranks: Alone) -> Tensor:
    """fp32 `[..., N]` -> `[..., 1]` over the values of all ranks. Those that several hold count as often in the sum as
    in their number."""
    counted = torch.stack((x32.sum(-1), x32.new_full(x32.shape[:-1], x32.shape[-1])), dim=-1)
    sums = ranks.entered(ranks.total(counted))
    return sums[..., :1] / sums[..., 1:]


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, offset: float, cast: NormCast, ranks: Alone) -> Tensor:
    """`reference.rms_norm` over the values of all ranks: x `[..., N]`, weight `[N]`."""
    normed = x.float() * torch.rsqrt(mean(x.float().square(), ranks) + eps)
    if weight is None:
        return normed.to(x.dtype)
    if cast == "before_weight":
        return normed.to(x.dtype) * (weight + offset)
    return (normed * (weight.float() + offset)).to(x.dtype)


def above_quantile(x: Tensor, share: float, ranks: Alone) -> Tensor:
    """`reference.above_quantile` over the values of all ranks: x `[..., N]`."""
    x32 = x.float()
    middle = mean(x32, ranks)
    deviation = mean((x32 - middle).square(), ranks).sqrt()
    return (x32 - middle - NormalDist().inv_cdf(share) * deviation).clamp(min=0).to(x.dtype)


def cross_entropy(part: Tensor, targets: Tensor, first: int, ranks: Alone) -> Tensor:
    """The sum of -log softmax(z)[target], fp32 `[]`, of logits z of which each rank has a part `[T, N]`, the one here
    from `first` on; targets int64 `[T]`. Two numbers of each row cross."""
    if ranks.wide == 1:
        return F.cross_entropy(part.float(), targets, reduction="sum")
    part, place = part.float(), targets - first
    here = (place >= 0) & (place < part.shape[-1])
    own = part.gather(-1, place.where(here, 0)[:, None])[:, 0] * here
    each = ranks.joined(part.logsumexp(-1, keepdim=True), ranks.wide)
    return (each.logsumexp(-1) - ranks.total(own)).sum()
