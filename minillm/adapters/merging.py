"""An adapter put into the weights themselves, in memory. Products are in fp32 and rounded once, to the model's type;
where that is bf16, changes of less than about a 500th of a weight are lost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.adapters.adapter import Adapter, own_head
from minillm.model import held
from minillm.model.lora import adapted, deltas


@dataclass
class Moved:
    """How many weights an adapter changes, and how many of these rounding left as they were."""

    changed: int = 0
    unmoved: int = 0

    def saw(self, before: Tensor, exact: Tensor, after: Tensor) -> None:
        """Weights before, with the adapter in fp32, and rounded."""
        changed = exact != before.float()
        self.changed += int(changed.sum())
        self.unmoved += int((changed & (after == before)).sum())

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
