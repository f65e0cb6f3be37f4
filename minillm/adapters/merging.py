"""An adapter put into the weights themselves: those of a model in memory, or rows of a checkpoint as they are read.
Products are in fp32 and rounded once, to the type of the weights; where that is bf16, changes of less than about a
500th of a weight are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minillm.adapters.adapter import Adapter, own_head
from minillm.model import held
from minillm.model.lora import adapted, deltas
from minillm.weights.rules import Destination


@dataclass
class Moved:
    """How many weights an adapter changes, and how many of these rounding left as they were."""

    changed: int = 0
    unmoved: int = 0

    def saw(self, before: Tensor, exact: Tensor, after: Tensor) -> None:
        """Weights before, with the adapter in fp32, and rounded."""
        changed = exact != before.float()
        self.changed += int(changed.sum())
        self.unmoved += int((changed & (after == before.to(after.dtype))).sum())

    @property
    def share(self) -> float:
        return self.unmoved / max(self.changed, 1)

    def __str__(self) -> str:
        return f"{self.share:.0%} of the {self.changed:,} weights that it changes were left as they are by rounding"


def mergeable(adapter: Adapter) -> bool:
    """Whether all that an adapter changes are plain weights, with a bias where it adds to one."""
    for (owner, leaf), change in adapter.deltas.items():
        module = adapter.model.get_submodule(owner)
        biased = isinstance(change, deltas.Deltas) and any(part.bias is not None for part in change.parts)
        if leaf in held.held_in(module) or (biased and getattr(module, "bias", None) is None):
            return False
    return True


@torch.no_grad()
def merge(adapter: Adapter) -> Moved:
    """Put an adapter into the weights of its model; it is no longer an adapter then. Check `mergeable` first."""
    model, moved = adapter.model, Moved()
    for (owner, leaf), change in adapter.deltas.items():
        module = model.get_submodule(owner)
        if owner == "embedding":
            own_head(model)  # which stays as it is where the two are tied
        weight, bias = getattr(module, leaf), getattr(module, "bias", None) if leaf == "weight" else None
        exact, exact_bias = change.merged(weight, bias)
        made = exact.to(weight.dtype)
        moved.saw(weight, exact, made)
        # In a place of its own: head and embedding may be one matrix, of which only one is meant.
        module._parameters[leaf] = torch.nn.Parameter(made, requires_grad=False)
        if bias is not None and exact_bias is not None:
            bias.copy_(exact_bias)
    adapted.remove(model, adapter.name)
    adapter.choice.rows = ()
    return moved


@dataclass
class Into:
    """What adapters make of the rows of a parameter of this shape: new values, where one replaces it, and what others
    add."""

    shape: tuple[int, ...]
    whole: Tensor | None = None
    added: list[deltas.Deltas | deltas.EmbeddingDelta] = field(default_factory=list)

    def __call__(self, rows: Tensor, start: int) -> Tensor:
        """fp32 `[n, …]`, the rows from `start` on, -> the new ones; of `[E, O, I]` those of all experts one under the
        other."""
        if self.whole is not None:
            flat = self.whole.flatten(0, -2) if self.whole.dim() > 1 else self.whole
            rows = flat[start : start + len(rows)].float()
        for each in self.added:
            if len(self.shape) < 3:
                rows = each.merged(rows, None, start)[0]
            else:
                assert isinstance(each, deltas.Deltas)
                rows = self._of_experts(each, rows, start)
        return rows

    def _of_experts(self, added: deltas.Deltas, rows: Tensor, start: int) -> Tensor:
        made, at, outputs = list[Tensor](), 0, self.shape[1]
        while at < len(rows):
            expert, first = divmod(start + at, outputs)
            some = rows[at : at + outputs - first]
            made.append(added.of_expert(expert).merged(some, None, first)[0])
            at += len(some)
        return torch.cat(made)


@dataclass
class IntoBias:
    """What adapters make of the bias of a matrix `of`, whose rows `weights` reads: DoRA divides by their size."""

    of: Destination
    weights: Callable[[Destination], Iterator[Tensor]]
    added: list[deltas.Deltas] = field(default_factory=list)

    def __call__(self, rows: Tensor, start: int) -> Tensor:
        made, at = list[Tensor](), start
        wanted = Destination(self.of.parameter, start, (len(rows), *self.of.shape[1:]))
        for weight in self.weights(wanted):
            some: Tensor | None = rows[at - start : at - start + len(weight)]
            for each in self.added:
                some = each.merged(weight, some, at)[1]
            assert some is not None
            made.append(some)
            at += len(weight)
        return torch.cat(made)


def changes(
    adapters: Sequence[Adapter], weights: Callable[[Destination], Iterator[Tensor]]
) -> dict[str, Into | IntoBias]:
    """What adapters of one model make of its parameters; `weights` reads rows of these as they were. Raises ValueError
    for a bias that there is none of, and for adapters whose order would matter."""
    found: dict[str, Into | IntoBias] = {}
    for adapter in adapters:
        _check_beside(adapter, adapters)
        shapes = {name: tuple(each.shape) for name, each in adapter.model.named_parameters(remove_duplicate=False)}
        for path, values in adapter.whole.items():
            found[path] = Into(shapes[path], values)
    for adapter in adapters:
        for (owner, leaf), added in adapter.deltas.items():
            path, bias = f"{owner}.{leaf}", f"{owner}.bias"
            shape = shapes[path]
            into = found.setdefault(path, Into(shape))
            assert isinstance(into, Into)
            into.added.append(added)
            if not isinstance(added, deltas.Deltas) or not (
                added.biases or any(p.bias is not None for p in added.parts)
            ):
                continue
            if bias not in shapes:
                raise ValueError(f"{path}: an adapter adds a bias (lora_bias), and the model has none there, so it "
                                 "cannot be merged; leave it beside the weights")  # fmt: skip
            of_bias = found.setdefault(bias, IntoBias(Destination(path, 0, shape), weights))
            assert isinstance(of_bias, IntoBias)
            of_bias.added.append(added)
    return found


def _check_beside(adapter: Adapter, adapters: Sequence[Adapter]) -> None:
    """Raise ValueError where what an adapter does depends on others."""
    others = [each for each in adapters if each is not adapter]
    if others and adapter.config.use_dora:
        raise ValueError("use_dora scales what other adapters add, so it depends on their order; merge one, and the "
                         "other into what comes of it")  # fmt: skip
    changed = {f"{owner}.{leaf}" for each in others for owner, leaf in each.deltas} | {
        path for each in others for path in each.whole
    }
    if both := sorted(changed & set(adapter.whole)):
        raise ValueError(f"two adapters change {both[0]}, which one of them replaces; merge one, and the other into "
                         "what comes of it")  # fmt: skip
