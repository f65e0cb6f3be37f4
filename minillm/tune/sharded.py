"""Training over several processes (FSDP, arXiv:2304.11277). Each has some rows of every step, and a share of the model:
rows of each parameter. A layer is put together when it is computed, and apart again behind that.

    rank 0: rows 0-7  -> layer by layer, whole -> its gradients \\  sum   / its share -> its share of the optimiser
                                                                 + ---- +
    rank 1: rows 8-15 -> layer by layer, whole -> its gradients /        \\ its share -> its share of the optimiser

What is lowered is a sum over all rows divided by what all of them count, so gradients are added and not averaged. An
adapter each rank has whole, with its optimiser, as it is small: of the model beside it each has a share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minillm.model import held
from minillm.model.decoder import Decoder, skeleton
from minillm.ops.cpu.memory import return_memory
from minillm.parallel.cut import taken
from minillm.parallel.kept import Kept
from minillm.parallel.ranks import Ranks
from minillm.parallel.split import Span, cut
from minillm.spec import Decoder as Spec
from minillm.spec import Fronted
from minillm.tune.optimizers import norm_of
from minillm.tune.team import Ranked
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.rules import Plan

APART = 2**31  # seeds of two ranks lie so far from each other


def check(spec: Spec) -> None:
    """Raise ValueError where layers need what belongs to another one, which is apart again by then."""
    if any(isinstance(layer.attention, Fronted) and layer.attention.block.of is not None for layer in spec.layers):
        raise ValueError("--ranks: some layers of this model share their weights, and each layer is put together by "
                         "itself; give --split too")  # fmt: skip


class Sharded(Ranked):
    """Those of them."""

    dealt = True

    def __init__(self, ranks: Ranks):
        super().__init__(ranks)
        self.root: nn.Module | None = None
        self.own: dict[str, Any] = {}  # the parameters that learn and are shared out
        self.shapes: dict[str, torch.Size] = {}  # of those whose share alone was read

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

    def norm(self, named: Mapping[str, nn.Parameter]) -> float:
        own = norm_of(named)
        return math.sqrt(self.total(own**2)[0]) if self.own else own

    def first(self, name: str) -> int:
        return self._span(len(self.own[name]))[0] if name in self.own else 0

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


class _Root(nn.Module):
    """A model, and how it is called: what is not in a layer is put together while this is."""

    def __init__(self, model: Decoder):
        super().__init__()
        self.model = model

    def forward(self, objective: Any, batch: Any) -> Tensor:
        made: Tensor = objective(self.model, batch)
        return made
