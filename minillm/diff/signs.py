"""What a difference looks like, and what that usually means: a table of signs, beside the causes found by experiment
(`diff/causes.py`).

Shapes: B batch, T tokens, S keys, H heads, D head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm.diff.compare import precision, run
from minillm.diff.names import Site
from minillm.diff.trace import Trace
from minillm.model.attention import GroupedQueryAttention, Step
from minillm.model.decoder import Decoder
from minillm.model.mla import LatentAttention
from minillm.model.moe import Router
from minillm.model.residual.block import Block
from minillm.report import observe

PERMUTED = 0.999  # share of a row's size that reordered values must explain
UNDERFLOW = 1e-6  # a weight that small may be 0 in another type
CONSTANT = 1e-3  # relative spread of a factor that counts as one


@torch.no_grad()
def signs(model: Decoder, site: Site, trace: Trace, step: Step, tolerance: float) -> list[str]:
    """Every sign that shows at a module."""
    if site.ours in trace.routes:
        return _router(model, site, trace)
    ours, theirs = run(model, site, trace, step).double(), trace.gave[site.name].double()
    if ours.numel() != theirs.numel():
        return [f"sizes differ: {tuple(ours.shape)} here, {tuple(theirs.shape)} there"]
    theirs = theirs.view_as(ours)
    seen = [text for sign in (_not_finite, _factor, _permuted) if (text := sign(ours, theirs))]
    if isinstance(_module(model, site), (GroupedQueryAttention, LatentAttention)) and site.ours in trace.attended:
        seen += _scores(model, site, trace, step)
    if isinstance(_module(model, site), (GroupedQueryAttention, LatentAttention, Block)) and not seen:
        seen += _by_position(ours, theirs, tolerance * precision(model, trace))
    return seen


def _module(model: Decoder, site: Site) -> torch.nn.Module | None:
    return None if site.ours in ("head", "embedding") else model.get_submodule(site.ours)


def _router(model: Decoder, site: Site, trace: Trace) -> list[str]:
    router = model.get_submodule(site.ours)
    assert isinstance(router, Router)
    ours, theirs = router(trace.given[site.ours].flatten(0, -2)), trace.routes[site.ours]
    if ours.experts.shape != theirs.experts.shape:
        return [f"{ours.experts.shape[-1]} experts for a token here, {theirs.experts.shape[-1]} there"]
    mine, other = ours.experts.sort(-1), theirs.experts.sort(-1)
    same = (mine.values == other.values).all(-1)
    if not same.all():
        return [
            f"{(~same).sum()} of {len(same)} tokens go to other experts on equal hidden states: the router's choice"
        ]
    ratio = (theirs.weights.gather(-1, other.indices) / ours.weights.gather(-1, mine.indices)).double()
    if (text := _constant(ratio)) is not None:
        return [f"same experts, all weights x {text}: the router's factor (scale)"]
    per_token = ratio / ratio.mean(-1, keepdim=True)
    if (per_token - 1).abs().max() < CONSTANT:
        return ["same experts, weights in the same proportion but another sum: renormalised or not"]
    return ["same experts, other weights: the router's scores"]


def _not_finite(ours: Tensor, theirs: Tensor) -> str | None:
    sides = [name for name, each in (("here", ours), ("there", theirs)) if not each.isfinite().all()]
    return f"values that are not finite {' and '.join(sides)}" if sides else None


def _constant(ratio: Tensor) -> str | None:
    middle = ratio.median()
    within = ((ratio - middle).abs() <= CONSTANT * middle.abs()).double().mean()
    return f"{middle:.4g}" if within > PERMUTED and abs(middle - 1) > CONSTANT else None


def _factor(ours: Tensor, theirs: Tensor) -> str | None:
    """All values times one number, by least squares."""
    factor = (ours * theirs).sum() / ours.square().sum()
    left = (theirs - factor * ours).norm() / theirs.norm()
    return f"the reference's is ours x {factor:.4g}" if left < CONSTANT and abs(factor - 1) > CONSTANT else None


def _permuted(ours: Tensor, theirs: Tensor) -> str | None:
    a, b = (each.flatten(0, -2).sort(-1).values for each in (ours, theirs))
    far = (ours - theirs).norm() / theirs.norm() > 10 * CONSTANT
    return "rows permuted: the same values in another order" if far and (a - b).norm() / b.norm() < CONSTANT else None


def _by_position(ours: Tensor, theirs: Tensor, limit: float) -> list[str]:
    """Where along a sequence errors `[T]`, relative to the size of a row, begin, in any of several streams."""
    size = theirs.square().mean(-1).sqrt().clamp(min=1e-30)
    wrong = ((ours - theirs).abs().amax(-1) / size > limit).reshape(*ours.shape[:2], -1).any(-1).any(0)
    first = int(wrong.int().argmax())
    if first == 1 and not wrong[0]:
        return ["right at position 0, wrong later: q, k or their scores (rope, norm, factor, cap, mask), not v"]
    if first > 1:
        return [f"right up to position {first - 1}, wrong from {first}: a window or a scaling that starts there"]
    return []


def _scores(model: Decoder, site: Site, trace: Trace, step: Step) -> list[str]:
    """Scores are known from the weights but for a constant for each query: their spread says the factor."""
    theirs = trace.attended[site.ours]
    with observe.ops(model, "attention") as calls:
        run(model, site, trace, step)
    if theirs.weights is None or not calls:
        return []
    given: list[Any] = [each.double() for each in (theirs.q, theirs.k, theirs.v)]
    rest = [each.double() if isinstance(each, Tensor) else each for each in calls[-1].given[3:]]
    ours, other = observe.attention_weights(*given, *rest, **calls[-1].options), theirs.weights.double()
    seen = ((ours > UNDERFLOW) & (other == 0)) | ((other > UNDERFLOW) & (ours == 0))
    if seen.any():
        at = seen.nonzero()[0].tolist()
        who = "the reference" if other[tuple(at)] > 0 else "minillm"
        return [f"query {at[2]} sees key {at[3]} in {who} only: the mask or the window"]
    if ((ours.sum(-1) - other.sum(-1)).abs() > CONSTANT).any():
        return ["the weights of a query do not sum to the same: attention sinks"]
    spread = [_centred(each) for each in (ours, other)]
    factor = (spread[0] * spread[1]).sum() / spread[0].square().sum()
    left = (spread[1] - factor * spread[0]).norm() / spread[1].norm()
    if left < CONSTANT and abs(factor - 1) > 10 * CONSTANT:
        return [f"all scores x {factor:.4g}: the factor on the scores (1 / sqrt(head_dim), mscale²)"]
    return []


def _centred(weights: Tensor) -> Tensor:
    """log of the weights less its mean over the keys that a query sees; 0 elsewhere. `[B, H, T, S]`."""
    seen = weights > 0
    logs = torch.where(seen, weights.clamp(min=1e-300).log(), 0.0)
    return torch.where(seen, logs - logs.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True), 0.0)
