"""Training over several processes (FSDP, arXiv:2304.11277). Each has some rows of every step, and a share of the model:
rows of each parameter. A layer is put together when it is computed, and apart again behind that.

    rank 0: rows 0-7  -> layer by layer, whole -> its gradients \\  sum   / its share -> its share of the optimiser
                                                                 + ---- +
    rank 1: rows 8-15 -> layer by layer, whole -> its gradients /        \\ its share -> its share of the optimiser

What is lowered is a sum over all rows divided by what all of them count, so gradients are added and not averaged. An
adapter each rank has whole, with its optimiser, as it is small: of the model beside it each has a share.

`Team` is what training asks, and what one process answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minillm.model import held
from minillm.model.decoder import Decoder, skeleton
from minillm.ops.cpu.memory import return_memory
from minillm.parallel import launch
from minillm.parallel.cut import taken
from minillm.parallel.kept import Kept
from minillm.parallel.ranks import TIMEOUT, Ranks
from minillm.parallel.split import Span, cut
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.rules import Plan

MANY = "{}-*-of-*.{}"  # files of several processes
APART = 2**31  # seeds of two ranks lie so far from each other


class Team:
    """The processes that train a model together: here one alone."""

    count = 1
    leads = True  # whether it says and writes what all have come to

    def agreed(self, mark: str) -> None:
        """Raise ValueError where another process begins with something else; `mark` says what this one has."""

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

    def norm(self, own: float) -> float:
        """The norm of all gradients, of which those here have the norm `own`."""
        return own

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
            raise ValueError(f"{folder}: the run that is there is of several processes ({other.name}); give --ranks "
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


class Sharded(Team):
    """Several of them. Every one does the same in the same order: what they exchange meets in that."""

    def __init__(self, ranks: Ranks):
        self.ranks, self.count, self.leads = ranks, ranks.count, ranks.rank == 0
        self.root: nn.Module | None = None
        self.own: dict[str, Any] = {}  # the parameters that learn and are shared out
        self.shapes: dict[str, torch.Size] = {}  # of those whose share alone was read

    def agreed(self, mark: str) -> None:
        self.ranks.agreed(hashlib.sha256(mark.encode()).hexdigest())

    def _span(self, rows: int) -> Span:
        """The rows of a parameter that are here."""
        most = -(-rows // self.count)
        return min(self.ranks.rank * most, rows), min((self.ranks.rank + 1) * most, rows)

    def taken(self, model: Decoder, checkpoint: Checkpoint, planned: Plan) -> tuple[Checkpoint, Plan]:
        self.shapes, wanted, whole = {}, {}, {to.parameter for to in planned.zeros}
        for owner, module in model.named_modules():
            for leaf, each in module.named_parameters(owner, recurse=False):
                name = leaf.rpartition(".")[2]
                if each.dim() < 2 or leaf in whole or held.held_in(module):
                    continue
                (first, end), inner = self._span(len(each)), math.prod(each.shape[1:-1])
                self.shapes[leaf], wanted[leaf] = each.shape, Kept(((first * inner, end * inner),))
                module._parameters[name] = nn.Parameter(each[first:end], requires_grad=False)
        return taken(checkpoint, planned, wanted)

    def share(self, model: Decoder, named: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        types = sorted({str(each.dtype) for each in model.parameters() if each.requires_grad})
        if len(types) > 1:
            raise ValueError(f"--full with --ranks: parameters of this model are {' and '.join(types)}, and are shared "
                             "out only where all are of one type; give --dtype float32")  # fmt: skip
        mesh = DeviceMesh.from_group(self.ranks.data, self.ranks.device.type)
        policy, shares = MixedPrecisionPolicy(reduce_dtype=torch.float32), self._apart(model, mesh)
        self.root = _Root(model)
        for module in (*model.layers, self.root):
            made: Any = fully_shard(module, mesh=mesh, mp_policy=policy)
            made.set_gradient_divide_factor(1.0)
            made.set_force_sum_reduction_for_comms(True)
        model.load_state_dict(shares, assign=True)
        return_memory()
        self.own = {name: each for name, each in model.named_parameters() if each.requires_grad}
        return {name: nn.Parameter(each.to_local().detach()) for name, each in self.own.items()} or named

    def _apart(self, model: Decoder, mesh: Any) -> dict[str, nn.Parameter]:
        """Take the parameters of a model out of it, and leave their shapes; returns the share of each."""
        from torch.distributed.tensor import DTensor, Shard

        shares, known, kept = {}, dict[int, tuple[nn.Parameter, nn.Parameter]](), []  # one may have two names
        for owner, module in model.named_modules():
            for name, each in module.named_parameters(owner, recurse=False):
                if id(each) not in known:
                    kept.append(each)  # or another would get its id
                    shape, local = self.shapes.get(name, each.shape), each.detach()
                    local = local if name in self.shapes else local[slice(*self._span(len(each)))].clone()
                    meta = torch.empty(shape, dtype=each.dtype, device="meta")
                    how = {"run_check": False, "shape": shape, "stride": meta.stride()}
                    dealt = DTensor.from_local(local, mesh, [Shard(0)], **how)
                    known[id(each)] = nn.Parameter(dealt, each.requires_grad), nn.Parameter(meta, each.requires_grad)
                shares[name], module._parameters[name.rpartition(".")[2]] = known[id(each)]
        return shares

    def rows(self, numbers: Sequence[int], most: int) -> list[tuple[Sequence[int], int]]:
        """As many times as in the rank that has most of them, as all put layers together at once: a rank that has none
        left takes one again, which counts 0 times."""
        first, end = cut(len(numbers), self.count, self.ranks.rank)
        found = super().rows(numbers[first:end], most)
        times = math.ceil(math.ceil(len(numbers) / self.count) / most)
        return found + [(numbers[:1], 0)] * (times - len(found))

    def seed(self, seed: int) -> int:
        return seed + APART * self.ranks.rank

    def computed(self, objective: Any, model: Decoder, batch: Any) -> Tensor:
        assert self.root is not None
        made: Tensor = self.root(objective, batch)
        if not torch.is_grad_enabled():  # else it is apart again behind the way back
            self.root.reshard()  # type: ignore[operator]
        return made

    def total(self, *values: float) -> list[float]:
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=self.ranks.data)
        return summed.tolist()

    def gathered(self, named: Mapping[str, nn.Parameter]) -> None:
        for name, each in self.own.items():  # whose gradients are summed already
            named[name].grad = None if each.grad is None else each.grad.to_local()
            each.grad = None
        if self.own:
            return
        grads = [each.grad for each in named.values() if each.grad is not None]
        flat = torch.cat([each.flatten() for each in grads])
        dist.all_reduce(flat, group=self.ranks.data)
        for each, part in zip(grads, flat.split([each.numel() for each in grads]), strict=True):
            each.copy_(part.view_as(each))

    def norm(self, own: float) -> float:
        return math.sqrt(self.total(own**2)[0]) if self.own else own

    def named(self, file: str, mark: object) -> str:
        stem, ending = file.split(".")
        return f"{stem}-{mark}-{self.ranks.rank}-of-{self.count}.{ending}"

    def first(self, name: str) -> int:
        return self._span(len(self.own[name]))[0] if name in self.own else 0

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

    def whole(self, model: Decoder) -> Decoder:
        if not self.own:
            return model
        found = {}
        for name, each in model.named_parameters():
            full = each.full_tensor().detach()  # type: ignore[attr-defined]
            if self.leads:
                found[name] = full.cpu()
        made = skeleton(model.spec, model.dtype)
        if self.leads:
            made.load_state_dict(found, assign=True)
        return made

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


class _Root(nn.Module):
    """A model, and how it is called: what is not in a layer is put together while this is."""

    def __init__(self, model: Decoder):
        super().__init__()
        self.model = model

    def forward(self, objective: Any, batch: Any) -> Tensor:
        made: Tensor = objective(self.model, batch)
        return made


def join(count: int | None, device: torch.device, timeout: float | None) -> tuple[Team, torch.device]:
    """The processes that this one trains with, and its device. Raises ValueError where nothing has started so many."""
    ranks, device = launch.join(count or 1, device, TIMEOUT if timeout is None else timeout)
    return (Sharded(ranks), device) if isinstance(ranks, Ranks) else (ALONE, device)
