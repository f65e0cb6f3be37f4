"""-log softmax(cap(W h + b))[target], without the logits of all positions at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minillm.ops import dense

MOST_LOGITS = 2**26  # 256 MB of fp32


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    ignore_index: int = -100,
    bias: Tensor | None = None,
) -> Tensor:
    """Mean of -log softmax(cap(W h_n + b))[target_n] over the targets that are not `ignore_index`; 0 without such.

    hidden `[N, H]`, weight `[V, H]`, targets int64 `[N]`, bias `[V]` -> fp32 `[]`. No more than MOST_LOGITS are there
    at once: with gradients those of a part are computed once more on the way back, or where W is not learnt what goes
    back is computed with them.
    """
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if frozen and hidden.requires_grad and torch.is_grad_enabled():
        loss: Tensor = _FrozenHead.apply(hidden, weight, targets, softcap, ignore_index, bias)
        return loss

    def summed(x: Tensor, wanted: Tensor) -> Tensor:
        logits = F.linear(x, weight, bias).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return F.cross_entropy(logits, wanted, ignore_index=ignore_index, reduction="sum")

    parts = list(zip(*(each.split(max(MOST_LOGITS // len(weight), 1)) for each in (hidden, targets)), strict=True))
    count = (targets != ignore_index).sum().clamp(min=1)
    if len(parts) <= 1:
        return summed(hidden, targets) / count
    return torch.stack([checkpoint(summed, *part, use_reentrant=False) for part in parts]).sum() / count


class _FrozenHead(torch.autograd.Function):
    """`linear_cross_entropy` for W and b that are not learnt. Of the logits z of a part, d loss / d h is
    (softmax(z) - onehot(target)) W / count, times the cap's own slope: as soon as z is there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: Any, ignored: int, bias: Any
    ) -> Any:
        count, total, back = (targets != ignored).sum().clamp(min=1), torch.zeros((), device=hidden.device), []
        parts = -(-len(hidden) // max(MOST_LOGITS // len(weight), 1)) or 1
        for x, wanted in zip(hidden.tensor_split(parts), targets.tensor_split(parts), strict=True):
            logits = dense.product(x, weight, bias).float()
            slope = None
            if softcap is not None:
                bent = torch.tanh(logits / softcap)
                logits, slope = softcap * bent, 1 - bent.square()
            real = wanted != ignored
            at = torch.where(real, wanted, 0)[:, None]
            most, meant = logits.amax(1, keepdim=True), logits.gather(1, at)
            # In place, as to make such a tensor takes longer than to fill it. The largest logit tells log sum exp then:
            # its share is no less than 1 / V.
            shares = torch.softmax(logits, 1, out=logits)
            sums = most - shares.amax(1, keepdim=True).log()
            total += torch.where(real, (sums - meant)[:, 0], 0).sum()
            given = shares.scatter_add_(1, at, -torch.ones_like(sums))
            given = given if slope is None else given.mul_(slope)
            back.append((given.to(weight.dtype) @ weight).mul_(real[:, None] / count))
        ctx.save_for_backward(torch.cat(back).to(hidden.dtype))
        return total / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (back,) = ctx.saved_tensors
        return back * gradient, None, None, None, None, None
