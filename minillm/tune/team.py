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
    leads = True  # whether it says and writes what all have come to
    dealt = False  # whether each has rows of each parameter that learns, and knows which
    splits: model_ranks.Alone = model_ranks.ALONE  # the ranks that share every layer
    part: Share | None = None  # of these what is here

    def agreed(self, mark: str) -> None:
        """Raise ValueError where another process begins with something else; `mark` says what this one has."""

    def load(self, progress: Callable[[int, int], None] = lambda done, total: None, **asked: Any) -> LLM:
        """What is here of a checkpoint; `asked` is what `loading.lay_out` takes."""
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
        """What is read of a checkpoint here; the parameters of `model`, which has no memory yet, become those."""
        return checkpoint, planned

    def share(self, model: Decoder, named: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        """Keep this process's share of a model; returns what it has of the parameters that learn."""
        return named

    def rows(self, numbers: Sequence[int], most: int) -> list[tuple[Sequence[int], int]]:
        """Which of these rows go through here, `most` at a time, and how often they count: once."""
        return [(numbers[start : start + most], 1) for start in range(0, len(numbers), most)]

    def seed(self, seed: int) -> int:
        """What this process draws with, which no two do with the same."""
        return seed

    def computed(self, objective: Any, model: Decoder, batch: Any) -> Tensor:
        """`objective(model, batch)`."""
        return objective(model, batch)

    def total(self, *values: float) -> list[float]:
        """Of each of these numbers the sum over the processes."""
        return list(values)

    def gathered(self, named: Mapping[str, nn.Parameter]) -> None:
        """Let parameters have the gradients of all rows, not only of those that went through here."""

    def norm(self, named: Mapping[str, nn.Parameter]) -> float:
        """That of the gradients of all parameters, of which these are here."""
        return norm_of(named)

    def named(self, file: str, mark: object) -> str:
        """What a file is called in which this process keeps its share of something."""
        return file

    def first(self, name: str) -> int:
        """Of a parameter that learns the first of the rows that are here."""
        return 0

    def kept(self, folder: Path, file: str) -> Path | None:
        """The file with this process's share of what all have kept last. Raises ValueError where other processes than
        these have kept something."""
        if other := next((each for each in folder.glob(MANY.format(*file.split("."))) if each.is_file()), None):
            raise ValueError(f"{folder}: the saved run has several processes ({other.name}); give --ranks "
                             "as it had, or take another --output")  # fmt: skip
        return folder / file if (folder / file).is_file() else None

    def whole(self, model: Decoder) -> Decoder:
        """The model with all of its parameters; of several processes in the one that leads, on the CPU."""
        return model

    @property
    def here(self) -> int:
        """How many of them are known to be on this machine."""
        return 1

    def running(self) -> AbstractContextManager[None]:
        """From before the model is loaded until all is written: where another process is gone, this one ends."""
        return contextlib.nullcontext()


ALONE = Team()


class Ranked(Team):
    """Several. Every one does the same in the same order: what they exchange meets in that."""

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
        """A step is kept when all have written it, and the one before is removed behind that: so of the last that each
        has, the first is one that all have."""
        stem, ending = file.split(".")
        found = [each.name for each in (*folder.glob(file), *folder.glob(MANY.format(stem, ending)))]
        if odd := next((each for each in found if not each.endswith(f"-of-{self.count}.{ending}")), None):
            raise ValueError(f"{folder}: the run that is there is of other processes than these {self.count} ({odd}); "
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
