"""Preferences: of two answers to a prompt the one that people chose becomes likelier than the other, compared with what
the model said before training (Rafailov et al., arXiv:2305.18290).

    h = (log p(c) - log p₀(c)) - (log p(r) - log p₀(r))        c chosen, r rejected, p₀ the model before training
    DPO: -log sigmoid(beta h)                                  IPO: (h - 1 / (2 beta))²

each log p being the sum over an answer's tokens, with IPO their mean (Azar et al., arXiv:2310.12036). Before the first
step h is 0 and the loss of DPO ln 2. What the first model says of each pair is computed once, before training.

Shapes: P pairs, B = 2 P rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.model.decoder import IGNORED, Decoder
from minillm.tune.masking import Pair
from minillm.tune.packing import Batch, collated_pairs

Kind = Literal["dpo", "ipo"]
LN2 = math.log(2)
ROUNDING = 1e-3  # of the first loss: answers of a thousand tokens, whose log p differ in their last bits


def log_probabilities(model: Decoder, batch: Batch, mean: bool = False) -> Tensor:
    """fp32 `[B]`: the log-probability of what is learnt in each row, or its mean over the tokens."""
    x_BTE, found = model.hidden(batch.tokens_BT)[:, :-1], []
    for x_TE, labels_T in zip(x_BTE, batch.labels_BT[:, 1:], strict=True):
        kept = labels_T != IGNORED
        mean_loss = model.cross_entropy(x_TE[kept], labels_T[kept])
        found.append(-mean_loss if mean else -mean_loss * kept.sum())
    return torch.stack(found)


class Preference:
    """The sum of a batch's losses, one for each pair; `before` fp32 `[P, 2]` is what `first_words` gives."""

    def __init__(self, kind: Kind, beta: float, before: Tensor):
        self.name: str = kind
        self.beta, self.before = beta, before

    def count(self, batch: Batch) -> int:
        return len(batch.numbers)

    def __call__(self, model: Decoder, batch: Batch) -> Tensor:
        now = log_probabilities(model, batch, mean=self.name == "ipo")
        before = self.before[list(batch.numbers)].T.flatten().to(now.device)
        chosen, rejected = (now - before).chunk(2)
        if self.name == "ipo":
            return (chosen - rejected - 1 / (2 * self.beta)).square().sum()
        return -F.logsigmoid(self.beta * (chosen - rejected)).sum()


@torch.no_grad()
def first_words(model: Decoder, pairs: Sequence[Pair], kind: Kind, rows: int, device: torch.device) -> Tensor:
    """fp32 `[P, 2]`: what the model says of each pair's answers now, `rows` pairs at a time."""
    found = []
    for start in range(0, len(pairs), rows):
        some = pairs[start : start + rows]
        batch = collated_pairs(some, range(start, start + len(some))).to(device)
        found.append(torch.stack(log_probabilities(model, batch, kind == "ipo").chunk(2), dim=1).cpu())
    return torch.cat(found)
