"""Where the tokens of one layer went, in numbers: functions of what its router chose, without a model.

Shapes: N tokens, E experts, k chosen per token, G groups, U different tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minillm import spec
from minillm.model.balance import expert_load
from minillm.ops import routing
from minillm.ops.routing import Routing

ROWS_AT_ONCE = 2**16  # tokens whose choices are laid out over all experts: fp32 counts them exactly
BINS = 20  # of a histogram of margins
QUANTILES = {"p1": 0.01, "p10": 0.1, "p50": 0.5, "p90": 0.9}
PAIRS, TOKENS = 8, 6  # listed of a layer, of an expert
MIN_EXPECTED = 5.0  # picks of a pair, below which its lift is chance
MIN_SEEN = 5  # times that a token comes, below which its lift is chance


class Picks(NamedTuple):
    """The choices of one layer, in the order of the text. A margin is inf where there was nothing else to choose."""

    experts: Tensor  # int16 [N, k], best first
    weights: Tensor  # fp32 [N, k]
    margin: Tensor  # fp32 [N]
    group_margin: Tensor  # fp32 [N]
    entropy: Tensor  # fp32 [N], nats


def picks(routed: Routing, correction: Tensor | None, router: spec.Router) -> Picks:
    """What is kept of a layer's routing. Raises ValueError for logits that are not finite."""
    if not routed.logits.isfinite().all():
        raise ValueError("a router's logits are not finite; try --dtype float32")
    margin, group_margin = margins(routed, correction, router)
    found = (routed.experts.to(torch.int16), routed.weights, margin, group_margin, entropy(routed.logits, router))
    return Picks(*(each.cpu() for each in found))


def margins(routed: Routing, correction: Tensor | None, router: spec.Router) -> tuple[Tensor, Tensor]:
    """How far the last chosen expert is ahead of the best one not chosen, and the last chosen group ahead of the best
    other one; each fp32 `[N]`.

    The scores are those that the choice is made by: with the correction, and among the experts of the chosen groups.
    """
    choice = routing.score(routed.logits, router)
    choice = choice if correction is None else choice + correction
    group_margin = choice.new_full(choice.shape[:1], math.inf)
    if router.num_groups > router.top_groups:
        ranked = routing.group_scores(choice, router).sort(-1, descending=True).values
        group_margin = ranked[:, router.top_groups - 1] - ranked[:, router.top_groups]
    if router.num_groups > 1:
        choice = choice.masked_fill(~routing.best_groups(choice, router), -math.inf)
    last = choice.gather(-1, routed.experts).amin(-1)
    return last - choice.scatter(-1, routed.experts, -math.inf).amax(-1), group_margin


def entropy(logits: Tensor, router: spec.Router) -> Tensor:
    """Of each token's softmax over all experts, or of its sigmoids divided by their sum; nats, `[N, E]` -> `[N]`."""
    if router.score in ("sigmoid", "sqrt_softplus"):
        scores = routing.score(logits, router)
        shares = scores / scores.sum(-1, keepdim=True)
    else:
        shares = (routing.standardised(logits) if router.normalize == "logits" else logits).softmax(-1)
    return -torch.xlogy(shares, shares).sum(-1)


def shares(counts: Tensor) -> Tensor:
    """Counts or weights `[E]` divided by their sum, fp64; they sum to 1."""
    return counts.double() / counts.double().sum()


def nats(distribution: Tensor) -> float:
    """Its entropy, -sum p ln p."""
    return -torch.xlogy(distribution, distribution).sum().item()


def together(experts: Tensor, num_experts: int) -> Tensor:
    """For each pair of experts how many tokens chose both, int64 `[E, E]`; on the diagonal how many chose the one."""
    counts = torch.zeros(num_experts, num_experts, dtype=torch.int64)
    for rows in experts.long().split(ROWS_AT_ONCE):
        chosen = torch.zeros(len(rows), num_experts).scatter_(1, rows, 1.0)
        counts += (chosen.T @ chosen).long()
    return counts


def pairs(counts: Tensor, tokens: int) -> list[dict[str, Any]]:
    """The pairs chosen together most often for what independence would give, n_a n_b / N of them; counts are those of
    `together`. Pairs expected less than MIN_EXPECTED times are left out."""
    load = counts.diagonal().double()
    expected = torch.outer(load, load) / tokens
    lift = torch.where(expected >= MIN_EXPECTED, counts / expected.clamp(min=1e-9), -1.0).triu(1)
    best = lift.flatten().topk(min(PAIRS, lift.numel()))
    found = []
    for value, at in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if value > 0:
            a, b = divmod(at, len(load))
            each = {"experts": [a, b], "count": int(counts[a, b]), "expected": expected[a, b].item(), "lift": value}
            found.append(each)
    return found


def specialists(
    experts: Tensor, ids: Tensor, num_experts: int, text_of: Callable[[int], str]
) -> list[list[dict[str, Any]]]:
    """For each expert the tokens that it sees most over what is expected: lift = c N / (n_t n_e), with c of the n_t
    places of a token at an expert that takes n_e of all N. Only lifts above 1, of tokens seen MIN_SEEN times."""
    kinds, place, seen = torch.unique(ids, return_inverse=True, return_counts=True)
    cells = (place[:, None] * num_experts + experts.long()).flatten()
    counts = torch.bincount(cells, minlength=len(kinds) * num_experts).view(len(kinds), num_experts)  # [U, E]
    expected = torch.outer(seen.double(), counts.sum(0).double()) / len(ids)
    lift = torch.where(seen[:, None] >= MIN_SEEN, counts / expected.clamp(min=1e-9), 0.0)
    often = counts.argsort(dim=0, descending=True, stable=True)  # of equal lifts the more frequent first
    best = often.gather(0, lift.gather(0, often).argsort(dim=0, descending=True, stable=True)[:TOKENS])
    return [
        [
            {
                "id": int(kinds[u]),
                "token": text_of(int(kinds[u])),
                "count": int(counts[u, e]),
                "lift": lift[u, e].item(),
            }
            for u in best[:, e].tolist()
            if lift[u, e] > 1
        ]
        for e in range(num_experts)
    ]


def distribution(margin: Tensor, tie: float) -> dict[str, Any] | None:
    """Smallest, mean, quantiles and histogram of the margins, how many tokens had nothing else to choose, and which
    share of the others came within `tie` of another choice; None where no token had a choice."""
    finite = margin[margin.isfinite()].double()
    if not len(finite):
        return None
    ordered, last = finite.sort().values, len(finite) - 1
    most = ordered[-1].item()
    return {
        "min": ordered[0].item(),
        "mean": finite.mean().item(),
        "max": most,
        **{name: ordered[round(at * last)].item() for name, at in QUANTILES.items()},
        "near_ties": (finite < tie).double().mean().item(),
        "without_rival": len(margin) - len(finite),
        "histogram": torch.histc(finite, BINS, 0, most or 1.0).long().tolist(),
    }


def summary(
    layer: int, found: Picks, ids: Tensor, router: spec.Router, tie: float, text_of: Callable[[int], str]
) -> dict[str, Any]:
    """All measures of a layer over the tokens `ids`, int64 `[N]`; the keys are those of docs/routes.md."""
    counts = expert_load(found.experts.long(), router.num_experts)
    weighed = torch.bincount(found.experts.long().flatten(), found.weights.double().flatten(), router.num_experts)
    load, best = shares(counts), found.weights.amax(-1).double()
    return {
        "layer": layer,
        "num_experts": router.num_experts,
        "top_k": router.top_k,
        "score": router.score,
        "load": load.tolist(),
        "weighted_load": shares(weighed).tolist(),
        "load_entropy": nats(load),
        "effective_experts": math.exp(nats(load)),
        "max_over_mean": load.max().item() * router.num_experts,
        "never_used": (counts == 0).nonzero().flatten().tolist(),
        "token_entropy": found.entropy.double().mean().item(),
        "top1_weight": best.mean().item(),
        "top1_share": (best / found.weights.double().sum(-1)).mean().item(),
        "margin": distribution(found.margin, tie),
        "groups": _groups(found, load, router, tie) if router.num_groups > 1 else None,
        "pairs": pairs(together(found.experts, router.num_experts), len(ids)),
        "specialists": specialists(found.experts, ids, router.num_experts, text_of),
    }


def _groups(found: Picks, load: Tensor, router: spec.Router, tie: float) -> dict[str, Any]:
    group = found.experts.long() // (router.num_experts // router.num_groups)
    used = torch.zeros(len(group), router.num_groups).scatter_(1, group, 1.0).sum(1)
    return {
        "num_groups": router.num_groups,
        "top_groups": router.top_groups,
        "load": load.unflatten(0, (router.num_groups, -1)).sum(-1).tolist(),
        "used_per_token": used.double().mean().item(),
        "margin": distribution(found.group_margin, tie),
    }


def joined(parts: Sequence[Picks]) -> Picks:
    """Those of one text behind those of another."""
    return Picks(*(torch.cat(each) for each in zip(*parts, strict=True)))
