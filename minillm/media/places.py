"""Where the tokens of a prompt with pictures stand: three coordinates each, time, row and column (M-RoPE, Wang et al.,
arXiv:2409.12191).

Of text all three grow by one from token to token. A picture stands at one time; its rows and columns are counted from
there, and the text behind it goes on where the longest of the three ends. (Behind a long video transformers 5.23 goes
on where its rows or columns end, and so in the midst of it; its earlier versions, and the models' training, do not.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A number of tokens of text; or the rows and columns of a picture's embeddings; or those of each group of frames, and
# their times.
Run = int | tuple[int, int] | tuple[int, int, tuple[int, ...]]


def coordinates(runs: Sequence[Run]) -> tuple[Tensor, int]:
    """Int64 `[3, T]`, and how far behind its number in the sequence a token that follows stands."""
    parts, at = [], 0
    for run in runs:
        if isinstance(run, int):
            parts.append(torch.arange(at, at + run).expand(3, -1))
            at += run
        else:
            rows, columns, times = run if len(run) == 3 else (*run, (0,))
            grid = torch.meshgrid(torch.tensor(times), torch.arange(rows), torch.arange(columns), indexing="ij")
            parts.append(torch.stack(grid).flatten(1) + at)
            at += max(rows, columns, times[-1] + 1)
    found = torch.cat(parts, dim=1)
    return found, at - found.shape[1]
