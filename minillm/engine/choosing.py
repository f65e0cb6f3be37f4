"""From the logits of rows to their next tokens, by each row's own settings, history and seed, without leaving the
device.

Shapes: B rows, T tokens of one row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.engine.completion import Completion
from minillm.engine.sampling import History, as_tensors, penalise
from minillm.model.decoder import Decoder

NOT_FINITE = (
    "the model's logits are not finite: its values overflow in this dtype or its weights are damaged; try dtype float32"
)


class Chooser:
    """The next token of each row, step after step, from where the rows are now."""

    def __init__(self, model: Decoder, rows: Sequence[Completion]):
        self.rows, self.sample, device = rows, model.ops.sample, model.embedding.weight.device
        seeds = torch.tensor([row.seed for row in rows], device=device)
        self.settings = (*as_tensors([row.sampling for row in rows], device), seeds)
        self.drawn = torch.tensor([len(row.token_ids) for row in rows], device=device)
        size = model.spec.vocab_size
        self.histories = [
            History(size, row.prompt, row.token_ids, device) if row.sampling.penalised else None for row in rows
        ]

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """int64 `[B]` on the device of the logits; -1 where they are not numbers to choose by."""
        if any(self.histories):
            logits_BV = torch.stack([
                penalise(logits_V, row.sampling, history) if history else logits_V.float()
                for row, logits_V, history in zip(self.rows, logits_BV, self.histories, strict=True)
            ])  # fmt: skip
        tokens_B = self.sample(logits_BV, *self.settings, self.drawn)
        self.drawn.add_(1)
        for token_1, history in zip(tokens_B.clamp(min=0).split(1), self.histories, strict=True):
            if history:
                history.push(token_1)
        return tokens_B


def foresee(model: Decoder, row: Completion, logits_TV: Tensor, assumed: Sequence[int]) -> list[int]:
    """What `row` draws from logits `[T, V]`, of which the last follow its text and all of the `assumed` tokens, and
    each of the others one token less: the same as from each alone, with that text."""
    count, device = len(logits_TV), logits_TV.device
    taken = range(len(assumed) + 1 - count, len(assumed) + 1)  # how many of the assumed stand before each
    if row.sampling.penalised:
        texts = [[*row.token_ids, *assumed[:n]] for n in taken]
        histories = [History(model.spec.vocab_size, row.prompt, text, device) for text in texts]
        punished = [penalise(each, row.sampling, seen) for each, seen in zip(logits_TV, histories, strict=True)]
        logits_TV = torch.stack(punished)
    seeds = torch.full((count,), row.seed, device=device)
    drawn = torch.arange(taken.start, taken.stop, device=device) + len(row.token_ids)
    return finite(model.ops.sample(logits_TV, *as_tensors([row.sampling] * count, device), seeds, drawn).tolist())


def finite(tokens: list[int]) -> list[int]:
    """The tokens, where all are some. Raises ValueError where the logits were not numbers to choose by."""
    if min(tokens) < 0:
        raise ValueError(NOT_FINITE)
    return tokens
