"""What training lowers: a sum over what a batch has to count, divided by what all batches of a step have.

So k batches of a step give the gradient of one that holds them all; a mean of their means would not, where answers are
of different lengths.

Shapes: B rows, T positions, N positions that are learnt, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minillm.model.balance import load_balancing_loss
from minillm.model.decoder import IGNORED, Decoder
from minillm.tune.packing import Batch

MOST_LOGITS = 2**25  # of two models at once


class Objective(Protocol):
    """`count` what a batch adds to the sum, and the sum itself, with gradients; both may be of several rows."""

    name: str

    def count(self, batch: Batch) -> int: ...

    def __call__(self, model: Decoder, batch: Batch) -> Tensor: ...


class NextToken:
    """-log p of each token that is learnt, in nats. Of a mixture whose routers learn too, `balance` times
    `balance.load_balancing_loss` of all layers comes on top, for each token."""

    name = "loss"

    def __init__(self, balance: float = 0.0):
        self.balance = balance

    def count(self, batch: Batch) -> int:
        return int((batch.labels_BT != IGNORED).sum())

    def __call__(self, model: Decoder, batch: Batch) -> Tensor:
        given = (batch.tokens_BT, batch.labels_BT, batch.starts_BT)
        if not self.balance:
            return model.loss(*given) * self.count(batch)
        with model.collected() as routing:
            loss = model.loss(*given)
        real = batch.real_BT.flatten()
        routed = [each for each in routing if each is not None]
        logits, chosen = (torch.cat([getattr(each, name)[real] for each in routed]) for name in ("logits", "experts"))
        balance = model.ops.ranks.alike(load_balancing_loss(logits, chosen))
        return (loss + self.balance * balance) * self.count(batch)


class Distillation:
    """KL(p ‖ q) = sum over v of p(v) (log p(v) - log q(v)) at each token that is learnt, p being the teacher's
    distribution and q the model's: what makes a draft whose guesses a larger model accepts."""

    name = "kl"

    def __init__(self, teacher: Decoder):
        self.teacher = teacher

    def count(self, batch: Batch) -> int:
        return int((batch.labels_BT != IGNORED).sum())

    def __call__(self, model: Decoder, batch: Batch) -> Tensor:
        learnt = batch.labels_BT[:, 1:] != IGNORED
        x_NE = model.hidden(batch.tokens_BT, starts_BT=batch.starts_BT)[:, :-1][learnt]
        with torch.no_grad():
            t_NE = self.teacher.hidden(batch.tokens_BT, starts_BT=batch.starts_BT)[:, :-1][learnt]

        def part(x: Tensor, t: Tensor) -> Tensor:
            with torch.no_grad():
                p = self.teacher.logits(t).float().log_softmax(-1)
            return F.kl_div(model.logits(x).float().log_softmax(-1), p, reduction="sum", log_target=True)

        size = max(MOST_LOGITS // model.spec.vocab_size, 1)
        parts = zip(x_NE.split(size), t_NE.split(size), strict=True)
        return torch.stack([checkpoint(part, *each, use_reentrant=False) for each in parts]).sum()
