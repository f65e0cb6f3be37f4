"""Two models on the same tokens, module by module.

Teacher-forced: each module gets the reference's input, so that its error is its own. Free-running: each gets what the
modules before it made, so that errors add up as they do in use. Errors are in units in the last place (ulps): of the
value or of the root mean square of its row, whichever is larger, as a value near zero is a difference of larger ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.diff.names import Site
from minillm.diff.trace import Trace, of_minillm, played
from minillm.model.attention import GroupedQueryAttention, Step
from minillm.model.compressed.attention import CompressedAttention
from minillm.model.decoder import Decoder
from minillm.model.mla import LatentAttention
from minillm.model.moe import Experts, MoE, Router
from minillm.model.recurrent.beside import Beside
from minillm.model.recurrent.stateful import Stateful
from minillm.model.residual.block import Block
from minillm.model.residual.per_layer import PerLayerEmbedding, PerLayerInput
from minillm.ops.routing import Routing

TRIES = 64  # of a rounding that would send a token elsewhere


@dataclass(frozen=True)
class Error:
    """Largest and mean, in ulps; and the root mean square over that of the reference."""

    max: float
    mean: float
    relative: float


@dataclass(frozen=True)
class Row:
    """One site: its own error, and what had come together by there. `flips`: how many tokens a router sends elsewhere
    than the reference's on the same input, `unexplained` of them by more than rounding, `free_flips` as it comes."""

    site: Site
    forced: Error
    free: Error | None
    flips: int = 0
    unexplained: int = 0
    free_flips: int = 0

    def diverges(self, tolerance: float) -> bool:
        return not self.forced.max <= tolerance or self.unexplained > 0  # NaN diverges


def error(ours: Tensor, theirs: Tensor, eps: float) -> Error:
    """Of two tensors `[..., n]`, in units of eps times the size of a value or of its row; infinite where one has more
    values than the other."""
    if ours.numel() != theirs.numel():
        return Error(math.inf, math.inf, math.inf)
    if not ours.numel():
        return Error(0.0, 0.0, 0.0)
    a, b = ours.double(), theirs.double().reshape(ours.shape)
    tiny = torch.finfo(torch.float32).tiny
    row = None if b.shape[-1] == 1 else -1  # a row of one value has no others to go by: all rows then
    size = torch.maximum(b.abs(), b.square().mean(row, keepdim=True).sqrt()).clamp(min=tiny)
    ulps = (a - b).abs() / (size * eps)
    relative = (a - b).norm() / b.norm().clamp(min=tiny)
    return Error(ulps.max().item(), ulps.mean().item(), relative.item())


def precision(model: Decoder, trace: Trace) -> float:
    """The distance from 1 to the next number of the coarser type of the two."""
    return max(torch.finfo(model.dtype).eps, torch.finfo(trace.gave["embedding"].dtype).eps)


@torch.no_grad()
def compare(model: Decoder, trace: Trace, sites: Sequence[Site], tolerance: float) -> list[Row]:
    """All sites that the trace has, in order."""
    eps, free = precision(model, trace), of_minillm(model, trace.tokens)
    step, rows = step_of(model, trace), list[Row]()
    for site in sites:
        if isinstance(module := _module(model, site), Router):
            if site.ours in trace.routes:
                rows.append(_router(module, site, trace, free, eps, tolerance))
        elif site.name in trace.gave:
            theirs = trace.gave[site.name]
            forced = error(run(model, site, trace, step), theirs, eps)
            reached = free.gave.get(site.ours)
            rows.append(Row(site, forced, None if reached is None else error(_rows(reached, site), theirs, eps)))
    return rows


def step_of(model: Decoder, trace: Trace) -> Step:
    """What all layers share, with the keys and values that some lend to others, made of the reference's inputs, and
    what they are told of a token as the reference has it."""
    step, told = model.step(trace.tokens, None), trace.gave.get("per_layer")
    if step.per_layer is not None and told is not None:
        step = dataclasses.replace(step, per_layer=told.to(model.dtype))
    for index in range(len(model.layers)):
        layer: Any = model.layers[index]
        given = trace.given.get(f"layers.{index}.attention")
        if getattr(layer.attention, "lent_as", None) is not None and given is not None:
            layer.attention(given.to(model.dtype), step, None)
    return step


def _module(model: Decoder, site: Site) -> torch.nn.Module | None:
    return None if site.ours == "head" else model.get_submodule(site.ours)


def run(model: Decoder, site: Site, trace: Trace, step: Step, module: torch.nn.Module | None = None) -> Tensor:
    """What a module of ours, or another in its place, makes of the reference's input; its tokens go to the experts that
    the reference chose."""
    if site.ours == "embedding":
        return model.embed(trace.tokens)
    x = trace.given[site.name]
    x = x.to(model.dtype) if x.is_floating_point() else x  # rows of a table otherwise
    if site.ours == "head":
        return model.project(x)
    module = module or model.get_submodule(site.ours)
    within = {name.removeprefix(f"{site.ours}."): routes for name, routes in trace.routes.items()}
    if isinstance(module, Experts):
        routes = trace.routes[f"{site.ours.removesuffix('experts')}router"]
        return module(x.flatten(0, -2), routes).view_as(x)
    with played(module, within):
        if isinstance(module, (Block, GroupedQueryAttention, LatentAttention, CompressedAttention, Stateful, Beside)):
            return module(x, step, None)
        if isinstance(module, PerLayerInput):
            return module(x, step)
        if isinstance(module, PerLayerEmbedding):
            return module(x, trace.gave["embedding"].to(model.dtype))
        return _rows(module(x, trace.tokens) if isinstance(module, MoE) else module(x), site)


def _rows(y: Tensor, site: Site) -> Tensor:
    return y if site.rows is None else y[..., site.start : site.start + site.rows]


def _router(router: Router, site: Site, trace: Trace, free: Trace, eps: float, tolerance: float) -> Row:
    theirs, x = trace.routes[site.ours], trace.given[site.ours]
    ours = router(x.flatten(0, -2), trace.tokens.flatten())
    same, error_of_weights = agreement(ours, theirs, eps)
    missed = int((~same & ~_explained(router, ours, theirs, tolerance)).sum())
    kept, free_error = agreement(free.routes[site.ours], theirs, eps)
    return Row(site, error_of_weights, free_error, int((~same).sum()), missed, int((~kept).sum()))


def agreement(ours: Routing, theirs: Routing, eps: float) -> tuple[Tensor, Error]:
    """Which tokens go to the same experts, bool `[N]`, and the error of these tokens' weights."""
    if ours.experts.shape != theirs.experts.shape:
        nowhere = torch.zeros(len(ours.experts), dtype=torch.bool, device=ours.experts.device)
        return nowhere, Error(math.inf, math.inf, math.inf)
    mine, other = ours.experts.sort(-1), theirs.experts.sort(-1)
    same = (mine.values == other.values).all(-1)
    a, b = (each.weights.gather(-1, order.indices)[same] for each, order in ((ours, mine), (theirs, other)))
    return same, error(a, b, eps)


def _explained(router: Router, ours: Routing, theirs: Routing, tolerance: float) -> Tensor:
    """For which tokens a rounding of the logits gives the reference's choice, bool `[N]`: near ties."""
    noise, generator = tolerance * torch.finfo(torch.float32).eps, torch.Generator().manual_seed(0)
    size = ours.logits.square().mean(-1, keepdim=True).sqrt()
    wanted, size_of_noise = theirs.experts.sort(-1).values, ours.logits.shape
    found = torch.zeros(len(wanted), dtype=torch.bool, device=wanted.device)
    for _ in range(TRIES if theirs.experts.shape == ours.experts.shape else 0):
        moved = ours.logits + noise * size * torch.randn(size_of_noise, generator=generator).to(size)
        chosen = router.ops.route(moved, router.bias, router.spec).experts
        found |= (chosen.sort(-1).values == wanted).all(-1)
    return found
