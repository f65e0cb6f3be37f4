"""What a reference computes on some tokens, module by module, in the names of minillm: a `Trace`. Made from a model of
transformers, or from another model of minillm.

Shapes: B batch, T tokens, H heads, D head_dim, N = B * T.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minillm.diff.names import Site
from minillm.guard.parsing import reading
from minillm.model.decoder import Decoder
from minillm.model.moe import Router
from minillm.model.norm import NoNorm
from minillm.ops.routing import Routing
from minillm.report import observe

LAST = {"attention": "out", "ffn": "down"}  # the product whose output is the module's


@dataclass(frozen=True)
class Attended:
    """What the scores of an attention were made of, behind norm and rotation: q `[B, H, T, D]`, k and v of their heads,
    the weights `[B, H, T, T]` where the reference tells, and the sums `[B, T, H * V]` before the output product."""

    q: Tensor
    k: Tensor
    v: Tensor
    weights: Tensor | None
    sums: Tensor


@dataclass
class Trace:
    """Input and output of each site by its name, the routes of each mixture by the name of its router."""

    tokens: Tensor
    given: dict[str, Tensor] = field(default_factory=dict)
    gave: dict[str, Tensor] = field(default_factory=dict)
    routes: dict[str, Routing] = field(default_factory=dict)
    attended: dict[str, Attended] = field(default_factory=dict)


@torch.no_grad()
def of_transformers(model: Any, tokens: Tensor, sites: Sequence[Site]) -> Trace:
    """A forward pass of a model of transformers with eager attention and eager experts."""
    named = [site for site in sites if site.theirs]
    trace = Trace(tokens)
    run = reading(type(model).__name__, "transformers cannot run it")
    with run, _hooked(model, named, trace), _eager(model, named, trace.attended):
        logits = model(tokens, use_cache=False).logits
    trace.gave["head"] = logits  # a cap on them is no module of its own
    for values in (trace.given, trace.gave):  # several streams may lie before the rows there
        several = {name: each for name, each in values.items() if each.dim() == 4 and ".attention." not in name}
        streams = {name: each for name, each in several.items() if each.shape[:2] != tokens.shape}
        values.update({name: each.movedim(0, -2) for name, each in streams.items()})
    _around(trace)
    return trace


@contextlib.contextmanager
def _hooked(model: nn.Module, sites: Sequence[Site], trace: Trace) -> Iterator[None]:
    hooks = []

    def note(site: Site) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
            values = [each for each in (*given, *options.values()) if isinstance(each, Tensor)]
            trace.given[site.name] = values[0]
            result = result[0] if isinstance(result, tuple) else result
            last = LAST.get(site.ours.rpartition(".")[2])
            if last and "residual" in inspect.signature(module.forward).parameters:
                result = trace.gave[f"{site.ours}.{last}"]  # before the layer's input is added to it
            trace.gave[site.name] = result.clone()  # some are clamped in place
            if site.ours.endswith(".experts"):
                router = site.ours.removesuffix("experts") + "router"
                trace.routes[router] = Routing(values[1], values[2].float(), torch.empty(0))

        return hook

    try:
        for site in sites:
            hooks.append(model.get_submodule(site.theirs).register_forward_hook(note(site), with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _eager(model: nn.Module, sites: Sequence[Site], attended: dict[str, Attended]) -> Iterator[None]:
    """Eager attention is a function in the file of each family, called with q, k and v as they meet."""
    named = {id(model.get_submodule(site.theirs)): site.ours for site in sites if site.ours.endswith(".attention")}
    files = {
        sys.modules[type(model.get_submodule(s.theirs)).__module__] for s in sites if s.ours.endswith(".attention")
    }
    name = "eager_attention_forward"
    before: dict[Any, Any] = {file: getattr(file, name) for file in files if hasattr(file, name)}

    def noted(function: Any) -> Any:
        def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Any:
            sums, weights = function(module, q, k, v, *rest, **options)
            if id(module) in named:
                own = getattr(module, "scaling", 1.0)
                q = q / own if options.get("scaling") == 1 else q  # which is multiplied already
                attended[named[id(module)]] = Attended(q, k, v, weights, sums.flatten(2))
            return sums, weights

        return attend

    try:
        for file, function in before.items():
            file.eager_attention_forward = noted(function)
        yield
    finally:
        for file, function in before.items():
            file.eager_attention_forward = function


@torch.no_grad()
def of_minillm(model: Decoder, tokens: Tensor) -> Trace:
    """A forward pass of another model of minillm."""
    names = [name for name, module in model.named_modules() if name and not isinstance(module, (nn.ModuleList, NoNorm))]
    with observe.modules(model, names) as seen, observe.ops(model, "attention") as calls:
        trace, logits = Trace(tokens), model(tokens)
    for name, call in seen.items():
        trace.given[name], trace.gave[name] = call.given[0], call.result
        if isinstance(call.result, Routing):
            trace.routes[name] = call.result
    for call in calls:
        q, k, v = (each.detach() for each in call.given[:3])
        weights = observe.attention_weights(*call.given, **call.options)
        trace.attended[call.module] = Attended(q, k, v, weights, call.result.transpose(1, 2).flatten(2))
    for index, layer in enumerate(model.layers):
        if layer.parallel:
            trace.given[f"layers.{index}.ffn_norm"] = trace.given[f"layers.{index}"]
    trace.given["head"], trace.gave["head"] = trace.gave["norm"], logits
    _around(trace, [layer.branch_scale for layer in model.spec.layers])
    return trace


def _around(trace: Trace, factors: Sequence[float] = ()) -> None:
    """What no hook sees: the embedding with its factor, norms without weights or that go with a sum. `factors`: of what
    each layer adds, 1 where there are none."""
    given, gave = trace.given, trace.gave
    first, index = given["layers.0"], 0
    gave["embedding"] = first if first.dim() == 3 else first[..., 0, :]
    while (name := f"layers.{index}") in given:
        ends = ("post_attention_norm", "attention_conv", "attention")
        attended = next((gave[f"{name}.{end}"] for end in ends if f"{name}.{end}" in gave), None)
        given.setdefault(f"{name}.attention_norm", given[name])
        if f"{name}.attention" in given:
            gave.setdefault(f"{name}.attention_norm", given[f"{name}.attention"])
        if f"{name}.ffn_norm" not in given and attended is not None:
            given[f"{name}.ffn_norm"] = given[name] + (attended * factors[index] if factors else attended)
        given.setdefault(f"{name}.ffn_norm", given[name])  # of a layer that is nothing else
        if f"{name}.ffn.down" in gave and f"{name}.ffn" not in gave:  # the layer's own products
            given[f"{name}.ffn"] = next(each for inner, each in given.items() if inner.startswith(f"{name}.ffn."))
            gave[f"{name}.ffn"] = gave[f"{name}.ffn.down"]
        if f"{name}.ffn" in given:
            gave.setdefault(f"{name}.ffn_norm", given[f"{name}.ffn"])
        index += 1
    given.setdefault("norm", gave[f"layers.{index - 1}"])
    gave.setdefault("norm", given["head"])


@contextlib.contextmanager
def played(model: nn.Module, routes: dict[str, Routing]) -> Iterator[None]:
    """Each router sends tokens where the reference's did: a choice is a step, and two correct models may differ. What
    all tokens go to it weighs itself."""

    def sent(own: Routing, name: str) -> Routing | None:
        return routes[name]._replace(shared=own.shared) if name in routes else None

    hooks = [
        module.register_forward_hook(lambda *call, name=name: sent(call[-1], name))
        for name, module in model.named_modules()
        if isinstance(module, Router)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
