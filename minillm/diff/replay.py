"""One module again, op by op in fp64, to say which side is off: each op gets the reference's input, and what it should
give is computed by the formula of the spec; the errors are those of ours and of the reference's against that.

A side that is right by this formula can still mean another one: `diff/causes.py` looks for it.

Shapes: B batch, T tokens, H heads, D head_dim, N = B * T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minillm.diff.compare import Error, agreement, error, precision, run
from minillm.diff.formulas import aligned, exact_qkv, normed, product
from minillm.diff.names import Site
from minillm.diff.trace import Trace
from minillm.model import held
from minillm.model.attention import GroupedQueryAttention, Step
from minillm.model.decoder import Decoder
from minillm.model.ffn import MLP, GatedMLP
from minillm.model.linear import Linear
from minillm.model.mla import LatentAttention
from minillm.model.moe import Experts, MoE, Router
from minillm.model.norm import LayerNorm, Norm
from minillm.model.recurrent.fronted import Fronted
from minillm.model.residual.block import Block
from minillm.ops import reference, routing
from minillm.ops.routing import Routing
from minillm.report import observe


@dataclass(frozen=True)
class Op:
    """One step of a module: the errors in ulps of both sides against the formula in fp64."""

    name: str
    ours: Error
    theirs: Error

    def off(self, tolerance: float) -> str | None:
        """Which side is: "ours", "theirs", "both", or None."""
        sides = [name for name, each in (("ours", self.ours), ("theirs", self.theirs)) if not each.max <= tolerance]
        return {0: None, 1: sides[0] if sides else None, 2: "both"}[len(sides)]


class Replay:
    """What a replay is made with; `op` compares one step."""

    def __init__(self, model: Decoder, site: Site, trace: Trace, step: Step):
        self.model, self.site, self.trace, self.step = model, site, trace, step
        self.eps, self.found = precision(model, trace), list[Op]()

    def op(self, name: str, exact: Tensor, ours: Tensor, theirs: Tensor | None) -> None:
        if theirs is not None:
            self.found.append(Op(name, error(ours, exact, self.eps), error(theirs, exact, self.eps)))


@torch.no_grad()
def replay(model: Decoder, site: Site, trace: Trace, step: Step) -> list[Op]:
    """The ops of the module at a site; none where its weights are not plain numbers, or nothing is known of it."""
    module = None if site.ours in ("head", "embedding") else model.get_submodule(site.ours)
    if any(held.held_in(each) for each in (module or model).modules()):
        return []
    made = Replay(model, site, trace, step)
    for kind, function in OPS.items():
        if isinstance(module, kind):
            function(made, module)
            return made.found
    if module is not None:
        return []
    exact = _embedding(made) if site.ours == "embedding" else _head(made)
    made.op("product", exact, run(model, site, trace, step), trace.gave[site.name])
    return made.found


def _embedding(made: Replay) -> Tensor:
    model, tokens = made.model, made.trace.tokens
    scale = model.embedding.weight.new_full((), model.spec.embedding.scale)  # rounded to the model's type
    x = F.embedding(tokens, model.embedding.weight).double() * scale.double()
    if model.positions is not None and model.spec.embedding.positions is not None:
        first = model.spec.embedding.positions.skipped
        x = x + model.positions.weight[first : first + tokens.shape[1]].double()
    return normed(x, model.embedding_norm)


def _head(made: Replay) -> Tensor:
    model, x = made.model, made.trace.given["head"]
    logits = x.double() @ model.embedding.weight.double().T if model.head is None else product(x, model.head)
    logits, cap = logits * model.spec.logit_scale, model.spec.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _whole(name: str, formula: Callable[[Tensor, Any], Tensor]) -> Callable[[Replay, Any], None]:
    """A module of one op."""

    def replayed(made: Replay, module: nn.Module) -> None:
        site, exact = made.site, formula(made.trace.given[made.site.name], module)
        exact = exact if site.rows is None else exact[..., site.start : site.start + site.rows]
        made.op(name, exact, run(made.model, site, made.trace, made.step), made.trace.gave[site.name])

    return replayed


def _mlp(made: Replay, mlp: GatedMLP | MLP) -> None:
    trace, name = made.trace, made.site.ours
    x, theirs = trace.given[name], trace.given.get(f"{name}.down")
    x_own = x.to(made.model.dtype)
    if isinstance(mlp, GatedMLP):
        inner = reference.gated_act(mlp.thinned(product(x, mlp.gate_up)), mlp.spec.activation)
        own = mlp.ops.gated_act(mlp.thinned(mlp.gate_up(x_own)), mlp.spec.activation)
    else:
        inner, own = mlp.activated(product(x, mlp.up)), mlp.activated(mlp.up(x_own))
    made.op("products and activation", inner, own, theirs)
    before = inner if theirs is None else theirs
    factor = mlp.spec.factors[1] if isinstance(mlp, GatedMLP) else 1.0
    exact, own = product(before, mlp.down) * factor, mlp.down(before.to(made.model.dtype)) * factor
    made.op("product down", exact, own, trace.gave[name])


def _router(made: Replay, router: Router) -> None:
    theirs, x = made.trace.routes[made.site.ours], made.trace.given[made.site.ours].flatten(0, -2)
    bias = None if router.logit_bias is None else router.logit_bias.double()
    logits = F.linear(router.given(x).double(), router.weight.double(), bias)
    tokens = made.trace.tokens.flatten()
    how = routing.route_weighed if router.weighed else routing.route
    exact = how(logits, None if router.bias is None else router.bias.double(), router.spec)
    if router.table is not None:
        exact = exact._replace(experts=router.table[tokens].long())
    ours = router(x, tokens)
    scores = routing.score(logits, router.spec)
    weighed, mine = (router.scaled(routing.weighed_as(scores, each.experts, router.spec)) for each in (theirs, ours))
    made.found += [
        Op("choice", *(_share(each, exact) for each in (ours, theirs))),
        Op("weights of the chosen", agreement(ours, mine, made.eps)[1], agreement(theirs, weighed, made.eps)[1]),
    ]


def _share(routes: Routing, exact: Routing) -> Error:
    """Which part of the tokens goes elsewhere: a choice has no ulps, and any is infinitely far off."""
    other = 1 - agreement(routes, exact, 1.0)[0].double().mean().item()
    return Error(float("inf") if other else 0.0, other, other)


def _experts(made: Replay, experts: Experts) -> None:
    name, trace = made.site.ours, made.trace
    routes, x = trace.routes[f"{name.removesuffix('experts')}router"], trace.given[name]
    tokens = x.flatten(0, -2).double()
    exact = torch.zeros_like(tokens)
    for expert in routes.experts.unique().tolist():
        token, pick = torch.where(routes.experts == expert)
        count, biases = experts.spec.router.num_experts, (experts.gate_up_bias, experts.down_bias)
        inner, outer = (None if each is None else each.view(count, -1)[expert].double() for each in biases)
        hidden = reference.gated_act(
            F.linear(tokens[token], experts.gate_up[expert].double(), inner), experts.spec.activation
        )
        y = F.linear(hidden, experts.down[expert].double(), outer)
        exact.index_add_(0, token, y * routes.weights[token, pick, None].double())
    made.op("weighted sum", exact, run(made.model, made.site, trace, made.step), trace.gave[name])


def _moe(made: Replay, moe: MoE) -> None:
    name, trace = made.site.ours, made.trace
    if f"{name}.experts" not in trace.gave:
        return
    x, exact = trace.given[name].double(), trace.gave[f"{name}.experts"].double()
    exact = exact.view_as(x) if moe.out_of is None else product(exact.view(*x.shape[:-1], -1), moe.out_of)
    if moe.shared is not None:
        shared = trace.gave.get(f"{name}.shared", moe.shared(x.to(made.model.dtype))).double().view_as(x)
        exact = exact + (shared if moe.shared_gate is None else product(x, moe.shared_gate).sigmoid() * shared)
    made.op("sum with the shared expert", exact, run(made.model, made.site, trace, made.step), trace.gave[name])


def _block(made: Replay, block: Block) -> None:
    if block.low_rank is not None or block.streams is not None or block.attention_mix or block.ffn_mix:
        return  # no plain sum
    if block.attention_conv is not None:
        return  # whose sum has what no module of the reference gives
    if isinstance(block.attention, Fronted):
        return  # no module of attention's alone
    trace, name = made.trace, made.site.ours
    x, parts = trace.given[name].double(), []
    for part in ("attention", "ffn", "per_layer"):
        names = [f"{name}.post_{part}_norm", f"{name}.{part}", f"{name}.{part}.norm"]
        after = next((trace.gave[each] for each in names if each in trace.gave), x.new_zeros(()))
        if after.dim() == 0 and getattr(block, part) is not None:
            return  # it has no module of its own there
        parts.append(after.double().expand_as(x) if after.dim() == 0 else after.double().view_as(x))
    ours, factor = run(made.model, made.site, trace, made.step), block.branch_scale
    total = x + factor * (parts[0] + parts[1]) + parts[2]
    exact = total if block.scale is None else total * block.scale.double()
    made.op("sum of input, attention and ffn", exact, ours, trace.gave[name])


def _attention(made: Replay, attention: GroupedQueryAttention | LatentAttention) -> None:
    name, trace = made.site.ours, made.trace
    theirs = trace.attended.get(name)
    with observe.ops(made.model, "attention") as calls:
        run(made.model, made.site, trace, made.step)
    if theirs is None or not calls:
        return
    call, exact = calls[-1], exact_qkv(attention, trace.given[name])
    for kind, ours, should, other in zip(
        ("q, normed and turned", "k, normed and turned", "v"), call.given, exact, (theirs.q, theirs.k, theirs.v),
        strict=False,
    ):  # fmt: skip
        made.op(kind, should, ours, aligned(other, should, attention))
    rest = call.given[3:]
    given: list[Any] = [each.to(made.model.dtype) for each in (theirs.q, theirs.k, theirs.v)]
    exactly: list[Any] = [each.double() if isinstance(each, Tensor) else each for each in (*given, *rest)]
    weights = observe.attention_weights(*exactly, **call.options)
    own = observe.attention_weights(*given, *rest, **call.options)
    made.op("softmax of scores", weights, own, theirs.weights)
    values = _repeated(theirs.v.double(), weights.shape[1])
    before = weights if theirs.weights is None else theirs.weights.double()
    own_sums = _merged(attention.ops.attention(*given, *rest, **call.options))
    each = [(own_sums, weights), (theirs.sums, before)]  # each side's sum with its own weights: a score is no sum
    made.found.append(Op("weighted sum of values", *(error(y, _merged(w @ values), made.eps) for y, w in each)))
    if attention.spec.gate:
        return  # the product is with what the gate leaves, which nobody has seen
    out = attention.out(theirs.sums.to(made.model.dtype))
    made.op("product out", product(theirs.sums, attention.out), out, trace.gave[name])


def _merged(y: Tensor) -> Tensor:
    return rearrange(y, "B H T V -> B T (H V)")


def _repeated(v: Tensor, heads: int) -> Tensor:
    return v.repeat_interleave(heads // v.shape[1], dim=1)


OPS: dict[Any, Callable[[Replay, Any], None]] = {
    (Norm, LayerNorm): _whole("norm", normed),
    Linear: _whole("product", product),
    (GatedMLP, MLP): _mlp,
    Router: _router,
    Experts: _experts,
    MoE: _moe,
    Block: _block,
    (GroupedQueryAttention, LatentAttention): _attention,
}
