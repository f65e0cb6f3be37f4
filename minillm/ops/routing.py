"""Which experts a token goes to, with what weights: the router's formulas, from logits on.

    score (softmax, sigmoid, …) -> choose the best k, perhaps of the best groups only -> weigh

Shapes: N tokens, E experts, k chosen per token. All of it in fp32: a rounded score could pick another expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm import spec


class Routing(NamedTuple):
    """Where the tokens of one layer go. `places` is what a kernel that routes may note for the sort by expert behind
    it: each pick's place among those of its expert, int32 `[N, k]`, and how many each has, int32 `[E]`."""

    experts: Tensor  # int64 [N, k]
    weights: Tensor  # fp32 [N, k]
    logits: Tensor  # fp32 [N, E], before any score
    places: tuple[Tensor, Tensor] | None = None
    shared: Tensor | None = None  # fp32 [N, n]: weights of n experts that all tokens go to

    def of(self, rows: Tensor) -> Routing:
        """That of some of the tokens, int64 `[n]`."""
        return Routing(self.experts[rows], self.weights[rows], self.logits[rows])


def route(logits: Tensor, correction: Tensor | None, router: spec.Router) -> Routing:
    """fp32 `[N, E]`, and what is added to the scores for the choice, fp32 `[E]` or None -> best experts first."""
    scores = score(logits, router)
    chosen = choose(scores, correction, router)
    return Routing(chosen, weigh(scores, chosen, router), logits)


def route_weighed(logits: Tensor, correction: Tensor | None, router: spec.Router) -> Routing:
    """As `route`, of logits `[N, E + n]` of which the last n are those of experts that every token goes to: they are
    weighed with the chosen ones."""
    scores, own = score(logits, router), router.num_experts
    return weighed_as(scores, choose(scores[:, :own], correction, router), router)._replace(logits=logits[:, :own])


def weighed_as(scores: Tensor, chosen: Tensor, router: spec.Router) -> Routing:
    """What `route_weighed` gives of scores `[N, E + n]` and the chosen experts `[N, k]`; of n = 0 as `route`."""
    every = torch.arange(router.num_experts, scores.shape[-1], device=scores.device).expand(len(scores), -1)
    weights = weigh(scores, torch.cat((chosen, every), dim=-1), router)
    found, shared = (each.contiguous() for each in weights.split((chosen.shape[-1], every.shape[-1]), dim=-1))
    return Routing(chosen, found, scores, shared=shared)


def score(logits: Tensor, router: spec.Router) -> Tensor:
    """fp32 `[N, E]` -> `[N, E]`: what experts are chosen by, and their weights made from."""
    if router.normalize == "logits":
        logits = standardised(logits)
    if router.score == "softmax":
        return logits.softmax(-1)
    if router.score == "sqrt_softplus":
        return F.softplus(logits).sqrt()
    return logits.sigmoid() if router.score == "sigmoid" else logits


def standardised(logits: Tensor) -> Tensor:
    """Each token's logits with mean 0 and (unbiased) deviation 1."""
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-5)


def choose(scores: Tensor, correction: Tensor | None, router: spec.Router) -> Tensor:
    """The chosen experts of each token, best first; scores `[N, E]`, correction `[E]` -> int64 `[N, k]`."""
    scores = scores if correction is None else scores + correction
    if router.num_groups > 1:
        scores = scores.masked_fill(~best_groups(scores, router), float("-inf"))
    return scores.topk(router.top_k, dim=-1).indices


def weigh(scores: Tensor, chosen: Tensor, router: spec.Router) -> Tensor:
    """The weights of the chosen experts; scores `[N, E]`, chosen `[N, k]` -> fp32 `[N, k]`."""
    picked = scores.gather(-1, chosen)
    weights = sparsemixer(scores, chosen, router.jitter) if router.score == "sparsemixer" else picked
    if router.score == "softmax_chosen":
        weights = weights.softmax(-1)
    if router.renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights if router.scale == 1 else weights * router.scale


def best_groups(choice: Tensor, router: spec.Router) -> Tensor:
    """True for the experts of each token's `top_groups` best groups; bool `[N, E]` (DeepSeek-V2, arXiv:2405.04434)."""
    best = group_scores(choice, router)
    allowed = torch.zeros_like(best, dtype=torch.bool)
    allowed.scatter_(-1, best.topk(router.top_groups, dim=-1).indices, True)
    return allowed.repeat_interleave(choice.shape[-1] // router.num_groups, dim=-1)


def group_scores(choice: Tensor, router: spec.Router) -> Tensor:
    """What groups are chosen by: the best of a group, or the sum of its best two; `[N, E]` -> `[N, groups]`."""
    grouped = choice.unflatten(-1, (router.num_groups, -1))  # [N, groups, E / groups]
    return grouped.topk(2 if router.group_score == "top2_sum" else 1, dim=-1).values.sum(-1)


def sparsemixer(logits: Tensor, chosen: Tensor, jitter: float) -> Tensor:
    """SparseMixer at inference (arXiv:2409.12136): each pick has its share of a softmax over the experts not picked
    before it whose logit l has (best - l) / max(|l|, best) <= 2 jitter, best being the pick's own.

    Shapes as in `weigh`; the weights do not sum to 1."""
    left, weights = logits, []
    for pick in chosen.split(1, dim=-1):
        best = logits.gather(-1, pick)
        far = (best - logits) / logits.abs().clamp(min=best) > 2 * jitter
        weights.append(left.masked_fill(far, float("-inf")).softmax(-1).gather(-1, pick))
        left = left.scatter(-1, pick, float("-inf"))
    return torch.cat(weights, -1)
