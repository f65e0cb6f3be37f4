"""Where patches lie, and what follows of it: rotations by row and column, learned positions, windows.

Patches come in the order in which the projector gathers them: blocks of `merge` by `merge`, row by row, and in each the
patches row by row. So nothing has to change places in front of it.

Shapes: N patches of a frame, P pairs of a head.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from minillm.spec.media import Table


def places(rows: int, columns: int, merge: int) -> Tensor:
    """The row and column of each patch of a grid, int64 `[N, 2]`; both sides are multiples of `merge`."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
    return rearrange(grid, "(r p) (c q) two -> (r c p q) two", p=merge, q=merge)


def rotation(places_N2: Tensor, dim: int, theta: float, columns: str) -> tuple[Tensor, Tensor]:
    """cos and sin `[1, N, P]`, fp32: the first half of the pairs turns by the row at the rates theta^(-4i / dim), the
    other by the column at the "same" ones, or "between" them at theta^(-(4i + 2) / dim); or columns come "first"."""
    rates = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    by_row, by_column = rates[0::2], rates[1::2] if columns == "between" else rates[0::2]
    halves = places_N2[:, :1] * by_row, places_N2[:, 1:] * by_column
    angles = torch.cat(halves[::-1] if columns == "first" else halves, dim=-1)[None]
    return angles.cos(), angles.sin()


def learned(rows_SE: Tensor, table: Table, places_N2: Tensor) -> Tensor:
    """The learned row of each patch, `[N, E]` in the table's dtype; those of a stretched table are weighted in fp32:
    S = side² rows, of which the grid's corners have the corners."""
    if table.summed:
        return rows_SE[places_N2[:, 1]] + rows_SE[table.side + places_N2[:, 0]]
    if not table.stretched:
        return rows_SE[places_N2[:, 0] * table.side + places_N2[:, 1]]
    last = table.side - 1
    ends = places_N2.amax(0).clamp(min=1)
    at = places_N2.float() * last / ends
    low = at.floor().long()
    total = torch.zeros(len(places_N2), rows_SE.shape[1], device=rows_SE.device)
    for step in torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], device=low.device):
        corner = (low + step).clamp(max=last)
        weight = (1 - (at - low - step).abs()).prod(-1, keepdim=True).to(rows_SE.device)
        total += rows_SE[corner[:, 0] * table.side + corner[:, 1]].float() * weight
    return total.to(rows_SE.dtype)


def windows(places_N2: Tensor, side: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """The order of patches in which windows of `side` by `side` patches lie together, int64 `[N]`, and how many there
    are of how many patches: windows at the right and lower edge have fewer. Neighbours in a block stay neighbours."""
    window = places_N2 // side
    number = window[:, 0] * (int(window[:, 1].max()) + 1) + window[:, 1]
    size = torch.bincount(number)[number]
    order = torch.argsort(size * len(places_N2) + number, stable=True)
    sizes, counts = torch.unique_consecutive(size[order], return_counts=True)
    return order, [(count // size, size) for size, count in zip(sizes.tolist(), counts.tolist(), strict=True)]
