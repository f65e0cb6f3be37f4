"""From the logits of rows to their next tokens, by each row's own settings, history and seed, without leaving the
device.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from minillm.engine.asked import GRAMMAR_FAILED, mask_of
from minillm.engine.completion import Completion
from minillm.engine.sampling import History, as_tensors, penalise
from minillm.model.decoder import Decoder

NOT_FINITE = (
    "the model's logits are not finite: its values overflow in this dtype or its weights are damaged; try dtype float32"
)


class Chooser:
    """The next token of each row, step after step, from where the rows are now; or from where they would be with tokens
    that are `assumed` to follow, a list for each row: it is the same as from there, once they are."""

    def __init__(self, model: Decoder, rows: Sequence[Completion], assumed: Sequence[Sequence[int]] | None = None):
        self.sample, device = model.ops.sample, model.embedding.weight.device
        seeds = torch.tensor([row.seed for row in rows], device=device)
        self.settings = (*as_tensors([row.sampling for row in rows], device), seeds)
        each = list(zip(rows, assumed or repeat(()), strict=False))
        self.drawn = torch.tensor([len(row.token_ids) + len(extra) for row, extra in each], device=device)
        size = model.spec.vocab_size
        self.changes = [Change(row, extra, size, device) if changed(row) else None for row, extra in each]

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """int64 `[B]` on the device of the logits; -1 where they are not numbers to choose by."""
        if any(self.changes):
            pairs = zip(self.changes, logits_BV, strict=True)
            logits_BV = torch.stack([each(logits_V) if each else logits_V.float() for each, logits_V in pairs])
        tokens_B = self.sample(logits_BV, *self.settings, self.drawn)
        self.drawn.add_(1)
        for token_1, change in zip(tokens_B.clamp(min=0).split(1), self.changes, strict=True):
            if change:
                change.push(token_1)
        return tokens_B


def changed(row: Completion) -> bool:
    """Whether anything changes a row's logits before they are drawn from."""
    sampling, asked = row.sampling, row.asked
    return bool(sampling.penalised or sampling.logit_bias or asked.guide is not None or asked.min_new_tokens)


class Change:
    """What a row does to its logits: adds its bias, punishes what was said, and leaves out what may not come yet."""

    def __init__(self, row: Completion, assumed: Sequence[int], size: int, device: torch.device):
        self.row, self.assumed, self.size, self.device = row, assumed, size, device
        self.made = len(row.token_ids) + len(assumed)
        bias = row.sampling.logit_bias or {}
        self.bias = [torch.tensor([*some], device=device) for some in (bias.keys(), bias.values())] if bias else None
        self.stops = torch.tensor([id for id in row.stop_ids if id < size], dtype=torch.int64, device=device)
        self.history = self._history() if row.sampling.penalised else None

    def _history(self) -> History:
        row = self.row
        if self.assumed:
            return History(self.size, row.prompt, [*row.token_ids, *self.assumed], self.device)
        if row.history is None or row.history.count != self.made:
            row.history = History(self.size, row.prompt, row.token_ids, self.device)
        return row.history

    def __call__(self, logits_V: Tensor) -> Tensor:
        """fp32 `[V]`, the argument left as it is."""
        logits_V = logits_V.float()
        if self.bias is not None:
            logits_V = logits_V.index_add(0, self.bias[0], self.bias[1].float())
        if self.history is not None:
            logits_V = penalise(logits_V, self.row.sampling, self.history)
        if self.made < self.row.asked.min_new_tokens:
            logits_V = logits_V.index_fill(0, self.stops, float("-inf"))
        return logits_V if self.row.asked.guide is None else self._guided(logits_V)

    def _guided(self, logits_V: Tensor) -> Tensor:
        """What the grammar allows. Where it fails, its row says why and the others never know."""
        guide = self.row.asked.guide
        assert guide is not None
        try:
            for token in self.assumed:
                guide.advance(token)
            allowed_V = mask_of(guide, self.size, self.device)
            if self.assumed:
                guide.rewind(len(self.assumed))
        except Exception as error:  # of somebody else's code
            self.row.error = f"{GRAMMAR_FAILED}: {error}"
            return logits_V
        return logits_V.masked_fill(~allowed_V, float("-inf"))

    def push(self, token_1: Tensor) -> None:
        """Count one more token, int64 `[1]`, which need not have reached the host."""
        self.made += 1
        if self.history is not None:
            self.history.push(token_1)
