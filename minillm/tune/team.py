"""The processes that train a model together. `Team` is what training asks of them, answered here by one process alone;
`Ranked` is what several processes have in common, whether they share out rows and weights (`sharded.py`) or share every
layer (`split.py`)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minillm.adapters.adapter import Adapter
from minillm.adapters.attach import attach
from minillm.adapters.config import AdapterConfig
from minillm.llm import LLM
from minillm.loading import filled, lay_out, say
from minillm.model.decoder import Decoder
from minillm.ops import ranks as model_ranks
from minillm.parallel import launch
from minillm.parallel.ranks import Ranks
from minillm.parallel.share import Share
from minillm.tune.optimizers import norm_of
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.rules import Plan

MANY = "{}-*-of-*.{}"  # files of several processes


class Team:
    """The processes that train a model together: here one alone."""

    count = 1
    leads = True  # whether it prints and writes the common results
    dealt = False  # whether each process holds known rows of each trained parameter
    splits: model_ranks.Alone = model_ranks.ALONE  # the ranks that share every layer
    part: Share | None = None  # the share of this rank

    def agreed(self, mark: str) -> None:
        """Raise ValueError if another process starts with something else; `mark` identifies what this one has."""

    def load(self, progress: Callable[[int, int], None] = lambda done, total: None, **asked: Any) -> LLM:
        """This process's share of a checkpoint; `asked` are the arguments of `loading.lay_out`."""
        laid = lay_out(**asked, ranks=self.splits)
        self.part = laid.share
        llm = filled(laid, progress, self.taken)
        if self.leads:
            say(laid)
        return llm

    def attach(self, llm: LLM, config: AdapterConfig, seed: int) -> Adapter:
        """A new adapter on the model."""
        return attach(llm, config, seed)

    def taken(self, model: Decoder, checkpoint: Checkpoint, planned: Plan) -> tuple[Checkpoint, Plan]:
        """The part of a checkpoint to read here; the parameters of `model`, still without memory, shrink to it."""
        return checkpoint, planned

    def share(self, model: Decoder, named: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        """Keep only this process's share of a model; returns its share of the trained parameters."""
        return named

    def rows(self, numbers: Sequence[int], most: int) -> list[tuple[Sequence[int], int]]:
        """The rows that this process computes, `most` at a time, and how often each counts: once."""
        return [(numbers[start : start + most], 1) for start in range(0, len(numbers), most)]

    def seed(self, seed: int) -> int:
        """The seed of this process, which differs in each."""
        return seed

    def computed(self, objective: Any, model: Decoder, batch: Any) -> Tensor:
        """`objective(model, batch)`."""
        return objective(model, batch)

    def total(self, *values: float) -> list[float]:
        """The sum of each number over the processes."""
        return list(values)

    def gathered(self, named: Mapping[str, nn.Parameter]) -> None:
        """Give parameters the gradients of all rows, not only of those computed here."""

    def norm(self, named: Mapping[str, nn.Parameter]) -> float:
        """The norm of the gradients of all parameters; `named` are those held here."""
        return norm_of(named)

    def named(self, file: str, mark: object) -> str:
        """The name of the file with this process's share."""
        return file

    def first(self, name: str) -> int:
        """The first row of a trained parameter that this process holds."""
        return 0

    def kept(self, folder: Path, file: str) -> Path | None:
        """The file with this process's share of the last save that all have completed. Raises ValueError if the save
        was made by another number of processes."""
        if other := next((each for each in folder.glob(MANY.format(*file.split("."))) if each.is_file()), None):
            raise ValueError(f"{folder}: the saved run has several processes ({other.name}); give --ranks "
                             "as it had, or take another --output")  # fmt: skip
        return folder / file if (folder / file).is_file() else None

    def whole(self, model: Decoder) -> Decoder:
        """The model with all of its parameters; with several processes only in the first, on the CPU."""
        return model

    @property
    def here(self) -> int:
        """How many of the processes are known to be on this machine."""
        return 1

    def running(self) -> AbstractContextManager[None]:
        """From before loading until everything is written: if another process is lost, this one ends."""
        return contextlib.nullcontext()


ALONE = Team()


class Ranked(Team):
    """Several processes. All do the same in the same order, so that their exchanges match."""

    def __init__(self, ranks: Ranks):
        self.ranks, self.count, self.leads = ranks, ranks.count, ranks.rank == 0

    def agreed(self, mark: str) -> None:
        self.ranks.agreed(hashlib.sha256(mark.encode()).hexdigest())

    def total(self, *values: float) -> list[float]:
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=self.ranks.data)
        return summed.tolist()

    def named(self, file: str, mark: object) -> str:
        stem, ending = file.split(".")
        return f"{stem}-{mark}-{self.ranks.rank}-of-{self.count}.{ending}"

    def kept(self, folder: Path, file: str) -> Path | None:
        """A save is complete when all have written it, and only then is the previous one removed. So the earliest of
        the last saves of each process is one that all have."""
        stem, ending = file.split(".")
        found = [each.name for each in (*folder.glob(file), *folder.glob(MANY.format(stem, ending)))]
        if odd := next((each for each in found if not each.endswith(f"-of-{self.count}.{ending}")), None):
            raise ValueError(f"{folder}: the saved run does not have {self.count} processes ({odd}); "
                             "give --ranks as it had, or take another --output")  # fmt: skip
        own = {int(each.name.split("-")[1]): each for each in folder.glob(self.named(file, "*"))}
        step = min(self.ranks.all_of(max(own, default=0)))
        return own.get(step)

    @property
    def here(self) -> int:
        return self.count if launch.STORE in os.environ else 1

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            self.ranks._lost(error)
        if not self.leads:  # wait for what the first does alone, and leave as `follow.begin` does
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.ranks.told()
            self.ranks.leave()
