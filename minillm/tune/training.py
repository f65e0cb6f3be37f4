"""The training loop, from top to bottom; it knows nothing of files, formats or commands.

A step goes through its rows in micro-batches, adds up their gradients, and takes one step of the optimiser. What is
lowered is a sum over all that the step's rows have to count, divided by how much that is (`objectives.py`): so it does
not matter how the rows are parted.

A step's rows, its rate and its random numbers are functions of the seed and its number. So a run that was cut off and
goes on from a saved state computes, bit for bit, what it would have. Of several processes each takes a share of the
rows (`sharded.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor, nn

from minillm.model.decoder import Decoder
from minillm.tune.masking import Example, Pair
from minillm.tune.objectives import Objective
from minillm.tune.optimizers import Optimizer, clipped
from minillm.tune.packing import Batch, collated, collated_pairs, groups, steps_of
from minillm.tune.state import Progress
from minillm.tune.team import ALONE, Team

MOST_SEED = 2**31


class Rows(Protocol):
    """What a run goes through, row by row."""

    def __len__(self) -> int: ...

    def batch(self, numbers: Sequence[int]) -> Batch: ...


@dataclass(frozen=True)
class Sequences:
    """Rows of one example, or of several that are packed."""

    rows: list[list[Example]]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, numbers: Sequence[int]) -> Batch:
        return collated([self.rows[number] for number in numbers])


@dataclass(frozen=True)
class Pairs:
    """A row for each pair of answers."""

    pairs: list[Pair]

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, numbers: Sequence[int]) -> Batch:
        return collated_pairs([self.pairs[number] for number in numbers], numbers)


@dataclass(frozen=True)
class Plan:
    """How long a run is and in which steps: `batch` rows in each, `micro` at a time. An evaluation every `every` steps;
    after `patience` of them without a better one the run ends."""

    steps: int
    batch: int
    micro: int
    seed: int = 0
    clip: float | None = 1.0
    every: int | None = None
    patience: int | None = None


class Taken(NamedTuple):
    """A step that was taken, by its number from 1 on. `evaluated` is the loss on what is held out, where it was due."""

    step: int
    loss: float
    norm: float
    rate: float
    tokens: int
    seconds: float
    evaluated: float | None = None
    best: bool = False


@dataclass
class Run:
    """What `train` needs: the model with the parameters that learn, what they go through, and how."""

    model: Decoder
    named: Mapping[str, nn.Parameter]
    objective: Objective
    rows: Rows
    plan: Plan
    optimizer: Optimizer
    rate: Callable[[int], float]
    device: torch.device
    held_out: Rows | None = None
    first_objective: Objective | None = None  # for what is held out, where that needs one of its own
    progress: Progress = field(default_factory=Progress)
    team: Team = ALONE


def train(run: Run) -> Iterator[Taken]:
    """Take the steps that are left, and say each when it is done; the caller may save then, and stop when it likes.

    Raises ValueError at the first loss or gradient that is no finite number, before anything is changed by it.
    """
    plan, progress, team = run.plan, run.progress, run.team
    run.model.train()
    for step in range(progress.step, plan.steps):
        started = time.perf_counter()
        torch.manual_seed(team.seed((plan.seed * 1_000_003 + step) % MOST_SEED))
        batches = micro_batches(run, run.rows, rows_of_step(run, step))
        own = [sum(each(batch) * times for batch, times in batches) for each in (run.objective.count, size)]
        count, tokens = map(round, team.total(*own))
        loss = 0.0
        for batch, times in batches:
            part = team.computed(run.objective, run.model, batch) * times / count
            value = part.item()
            if not math.isfinite(team.total(value)[0]):
                _not_finite(run, step, batch, value)
            part.backward()
            loss += value
        team.gathered(run.named)
        norm, rate = clipped(run.named, plan.clip, team.norm), run.rate(step)
        if not math.isfinite(norm):
            raise ValueError(_no_gradient(run, step))
        run.optimizer.step(rate, step + 1)
        (loss,) = team.total(loss)
        progress.step, progress.tokens = step + 1, progress.tokens + tokens
        taken = Taken(step + 1, loss, norm, rate, tokens, time.perf_counter() - started)
        if run.held_out is not None and plan.every and ((step + 1) % plan.every == 0 or step + 1 == plan.steps):
            taken = _judged(run, taken)
        yield taken
        if plan.patience is not None and progress.worse >= plan.patience:
            return


def rows_of_step(run: Run, step: int) -> list[int]:
    """The numbers of the rows of a step."""
    plan, count = run.plan, len(run.rows)
    epoch, place = divmod(step, steps_of(count, plan.batch))
    return next(groups(count, plan.batch, plan.seed, epoch, place))


def micro_batches(run: Run, rows: Rows, numbers: Sequence[int]) -> list[tuple[Batch, int]]:
    """The batches that these rows go through this process in, and how often each counts."""
    shares = run.team.rows(numbers, run.plan.micro)
    return [(rows.batch(some).to(run.device), times) for some, times in shares]


def size(batch: Batch) -> int:
    """The tokens of a batch, those that fill it up too."""
    return batch.tokens_BT.numel()


def _judged(run: Run, taken: Taken) -> Taken:
    """With the loss on what is held out, which `progress` remembers."""
    assert run.held_out is not None
    value, progress = evaluate(run, run.held_out), run.progress
    is_best = value < progress.best
    progress.worse = 0 if is_best else progress.worse + 1
    if is_best:
        progress.best, progress.best_step = value, taken.step
    return taken._replace(evaluated=value, best=is_best)


@torch.no_grad()
def evaluate(run: Run, rows: Rows) -> float:
    """The objective's mean over all rows, without what is random in training."""
    objective = run.first_objective or run.objective
    total, count = 0.0, 0
    run.model.eval()
    for batch, times in micro_batches(run, rows, range(len(rows))):
        total += float(run.team.computed(objective, run.model, batch)) * times
        count += objective.count(batch) * times
    run.model.train()
    total, of_all = run.team.total(total, count)
    return total / of_all


def _not_finite(run: Run, step: int, batch: Batch, value: float) -> NoReturn:
    """Say where a loss came from that is no number: the first module that gives one, of finite inputs. All processes
    look together; one whose own is finite then waits for the other to say so."""
    place = _first_bad_module(run, batch)
    if math.isfinite(value):
        run.team.total(value)
    lines = _brief(batch.lines)
    raise ValueError(f"step {step + 1}: the loss is {value} on lines {lines}, first in {place}; lower --rate, or look "
                     "at these lines")  # fmt: skip


def _no_gradient(run: Run, step: int) -> str:
    bad = [name for name, each in run.named.items() if each.grad is not None and not each.grad.isfinite().all()]
    lines = _brief(run.rows.batch(rows_of_step(run, step)).lines)
    where = f"{bad[-1]} and {len(bad) - 1} more" if bad else "their norm alone, as they are too large"
    return f"step {step + 1}: the gradients are not finite on lines {lines}, of {where}; lower --rate"


def _brief(lines: Sequence[int]) -> str:
    said = ", ".join(map(str, lines[:8]))
    return said if len(lines) <= 8 else f"{said} and {len(lines) - 8} more"


@torch.no_grad()
def _first_bad_module(run: Run, batch: Batch) -> str:
    found: list[str] = []

    def look(name: str, given: tuple[object, ...], made: object) -> None:
        bad = [isinstance(each, Tensor) and not each.isfinite().all() for each in (made, *given[:1])]
        if bad[0] and not bad[1] and not found:
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _, given, made, name=name: look(name, given, made))
        for name, module in run.model.named_modules()
        if name and not list(module.children())
    ]
    try:
        run.team.computed(run.objective, run.model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the loss itself"
