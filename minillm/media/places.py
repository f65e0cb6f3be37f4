"""Where the tokens of a prompt with pictures stand: three coordinates each, time, row and column (M-RoPE, Wang et al.,
arXiv:2409.12191).

Of text all three grow by one from token to token. A picture stands at one time; its rows and columns are counted from
there, and the text behind it goes on where the longer of the two ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Run = int | tuple[int, int]  # a number of tokens of text, or the rows and columns of a picture's embeddings


def coordinates(runs: Sequence[Run]) -> tuple[Tensor, int]:
    """Int64 `[3, T]`, and how far behind its number in the sequence a token that follows stands."""
    parts, at = [], 0
    for run in runs:
        if isinstance(run, int):
            parts.append(torch.arange(at, at + run).expand(3, -1))
            at += run
        else:
            grid = torch.meshgrid(torch.zeros(1, dtype=torch.int64), *map(torch.arange, run), indexing="ij")
            parts.append(torch.stack(grid).flatten(1) + at)
            at += max(run)
    found = torch.cat(parts, dim=1)
    return found, at - found.shape[1]
