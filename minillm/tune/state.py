"""What is kept of a run: `last.safetensors`, from which it goes on exactly where it was, and `best.safetensors`, the
parameters that did best on what is held out.

Each is one file that is complete or not there: a run that is killed while it saves goes on from the one before. Of
several processes each has one of its own, `last-STEP-RANK-of-RANKS.safetensors`, with its share, and in the header
where that begins, as torch.distributed.checkpoint's HuggingFaceStorageReader reads it. A file holds the
parameters that learn, what the optimiser knows of each, and in the bytes of one more tensor, as JSON, how far the run
was and what it was asked for. Nothing else is needed: batches and random numbers are functions of the seed and the
step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minillm.guard.screen import shown
from minillm.tune.optimizers import Optimizer
from minillm.tune.team import ALONE, Team
from minillm.weights.source import NAMES, Source
from minillm.weights.tensorfile import Writer, read_header

LAST, BEST, ABOUT = "last.safetensors", "best.safetensors", "about"
SHARES = "DCP_SHARDING_INFO"


@dataclass
class Progress:
    """How far a run is: steps taken, tokens seen, and of evaluations the best, where it was, and how many were worse
    since then."""

    step: int = 0
    tokens: int = 0
    best: float = math.inf
    best_step: int = 0
    worse: int = 0


def save(
    folder: Path,
    named: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    progress: Progress,
    asked: Mapping[str, Any],
    team: Team = ALONE,
) -> None:
    """Write `last.safetensors`."""
    path = folder / team.named(LAST, progress.step)
    known = {f"{name}#{key}": each for name, state in optimizer.state.items() for key, each in state.items()}
    _write(path, {**named, **known}, {"progress": asdict(progress), "asked": dict(asked)}, team)
    team.total(0)  # here all have written theirs
    for each in folder.glob(team.named(LAST, "*")):
        if each != path:
            each.unlink()


def save_best(folder: Path, named: Mapping[str, nn.Parameter], progress: Progress, team: Team = ALONE) -> None:
    """Write `best.safetensors`."""
    _write(folder / team.named(BEST, "share"), named, {"progress": asdict(progress)}, team)


def _write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], team: Team) -> None:
    text = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    tensors = {**tensors, ABOUT: text}
    firsts = {name: [team.first(name.partition("#")[0]), *[0] * (each.dim() - 1)] for name, each in tensors.items()}
    placed = {SHARES: json.dumps({name: {"saved_offsets": first} for name, first in firsts.items()})}
    entries = {name: (NAMES[each.dtype], tuple(each.shape)) for name, each in tensors.items()}
    with Writer(path, entries, placed if team.dealt else {}) as writer:
        for name, each in tensors.items():
            writer.write(name, each.detach())


def restore(
    folder: Path,
    named: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    asked: Mapping[str, Any],
    team: Team = ALONE,
) -> Progress | None:
    """Put parameters and optimiser where the last save left them; None where there was none.

    Raises ValueError where the run that was saved was asked for something else, or the file is of another model.
    """
    if (path := team.kept(folder, LAST)) is None:
        return None
    known = {f"{name}#{key}": each for name, state in optimizer.state.items() for key, each in state.items()}
    wanted: dict[str, Tensor] = {**named, **known}
    about = _read(path, wanted)
    before = about["asked"]
    for key in sorted({*before, *asked}):
        if before.get(key) != json.loads(json.dumps(asked.get(key))):
            raise ValueError(f"{folder}: the run that is there had {key} {shown(before.get(key))}, this one has "
                             f"{shown(asked.get(key))}; ask for the same, or take another --output")  # fmt: skip
    return Progress(**about["progress"])


def take_best(folder: Path, named: Mapping[str, nn.Parameter], team: Team = ALONE) -> None:
    """Give parameters the values that did best, where an evaluation has kept some."""
    if (path := folder / team.named(BEST, "share")).is_file():
        _read(path, named)


@torch.no_grad()
def _read(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fill tensors in place, all or none; returns what is said about them."""
    found = read_header(Source(path))
    for name, each in wanted.items():
        there = found.get(name)
        if there is None or there.shape != tuple(each.shape) or there.word != NAMES[each.dtype]:
            raise ValueError(f"{path}: {name} is not there as this run has it; take another --output")
    if odd := found.keys() - wanted.keys() - {ABOUT} or (ABOUT not in found and {ABOUT}):
        raise ValueError(f"{path}: {min(odd)} is not what this run keeps; take another --output")
    for name, each in wanted.items():
        each.copy_(found[name].values().view(each.shape))
    return dict(json.loads(bytes(found[ABOUT].values().tolist())))
