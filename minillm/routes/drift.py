"""How far two runs of routers are apart: over two texts, or over one text with two sets of weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from minillm import spec
from minillm.model.balance import expert_load
from minillm.routes.measure import Picks, nats, shares


def divergence(p: Tensor, q: Tensor) -> float:
    """Jensen-Shannon, in bits: H((p + q) / 2) - (H(p) + H(q)) / 2; 0 for the same shares, 1 for disjoint ones
    (Lin, IEEE Trans. Inf. Theory 37, 1991)."""
    return max(nats((p + q) / 2) - (nats(p) + nats(q)) / 2, 0.0) / math.log(2)


def drift(layer: int, before: Picks, after: Picks, router: spec.Router) -> dict[str, Any]:
    """How the load of a layer differs; `load_change` is share after less share before."""
    p, q = (shares(expert_load(each.experts.long(), router.num_experts)) for each in (before, after))
    return {"layer": layer, "divergence_bits": divergence(p, q), "load_change": (q - p).tolist()}


def flips(before: Picks, after: Picks, tie: float) -> dict[str, Any]:
    """How often the same token goes to other experts, in whatever order, and how that goes with the margin that it had
    before: that of its last expert, with groups also that of its last group. None where no token is of a kind."""
    moved = flipped(before.experts, after.experts)
    kept = (before.experts[:, :, None] == after.experts[:, None, :]).any(-1)
    near = torch.minimum(before.margin, before.group_margin) < tie
    return {
        "flipped": moved.double().mean().item(),
        "experts_kept": kept.double().mean().item(),
        "margin_of_flipped": _mean(before.margin[moved]),
        "margin_of_kept": _mean(before.margin[~moved]),
        "flipped_of_near_ties": _mean(moved[near].double()),
        "flipped_of_others": _mean(moved[~near].double()),
    }


def flipped(before: Tensor, after: Tensor) -> Tensor:
    """Tokens whose set of experts differs; `[N, k]` each -> bool `[N]`."""
    return (before.sort(-1).values != after.sort(-1).values).any(-1)


def _mean(values: Tensor) -> float | None:
    finite = values[values.isfinite()].double()
    return finite.mean().item() if len(finite) else None
