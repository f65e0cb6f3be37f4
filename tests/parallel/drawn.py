"""Models as hypothesis draws them, and what each of several ranks has of one; and checkpoints of families."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from minillm.model.decoder import Decoder, skeleton
from minillm.ops import CPU
from minillm.parallel import kept as keeping
from minillm.parallel import split
from minillm.parallel.kept import Kept
from minillm.spec import Decoder as Spec
from tests.helpers import oracles, tiny
from tests.helpers.specs import specs
from tests.parallel.threads import Thread


def part(whole: Tensor, kept: Kept | None, matrices: int = -1) -> Tensor:
    """What a rank has of a parameter, by what `kept` says alone; of experts so many matrices."""
    if kept is None:
        return whole
    if kept.absent:
        return torch.zeros_like(whole)
    rows = whole.reshape(-1, *whole.shape[-1:]) if whole.dim() > 1 else whole
    if kept.rows is not None:
        rows = torch.cat([rows[first:end] for first, end in kept.rows])
    if kept.columns is not None:
        rows = rows[:, slice(*kept.columns)]
    return rows.reshape(matrices, -1, *rows.shape[-1:]) if whole.dim() > 2 else rows


def share(model: Decoder, rank: Thread) -> Decoder:
    """A rank's model, with what it holds of the whole."""
    which = model.spec, rank.count, rank.rank
    mine = skeleton(split.local(*which), torch.float32, dataclasses.replace(CPU, ranks=rank))
    kept = keeping.kept(*which)
    own, whole = mine.state_dict(), model.state_dict()
    mine.load_state_dict({name: part(whole[name], kept.get(name), len(own[name])) for name in whole}, assign=True)
    return mine


def able(spec: Spec, ranks: int) -> bool:
    try:
        split.check(spec, ranks)
    except ValueError:
        return False
    return True


@st.composite
def splits(draw: st.DrawFn) -> tuple[Spec, int, int]:
    """A model, how many ranks it can lie in, and below how many values experts stay whole: these small ones always, or
    never."""
    spec, thin = draw(specs()), draw(st.sampled_from((0, split.THIN)))
    with patch.object(split, "THIN", thin):
        found = [ranks for ranks in range(2, 8) if able(spec, ranks)]
    assume(found)
    return spec, draw(st.sampled_from(found)), thin


def saved(folder: Path, row: str, **changes: Any) -> Path:
    """A checkpoint of random values in the published layout."""
    family, changed = tiny.ROWS[row]
    model = oracles.build(family, {**tiny.BASE, **changed, **changes})
    tiny.randomise(model)
    oracles.save(model, folder, family)
    return folder
