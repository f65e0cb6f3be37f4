"""Why a module differs: the other meaning that explains it, found by experiment.

The module is built again with one field of its spec changed, with the same weights, and
gets the reference's input; where its output then agrees, that field is the cause. `diff/alternatives.py` has the
fields and the values worth trying.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from minillm.diff.alternatives import alternatives, differences, possible
from minillm.diff.compare import agreement, error, precision, run
from minillm.diff.names import Site
from minillm.diff.trace import Trace
from minillm.model.attention import GroupedQueryAttention, Step
from minillm.model.decoder import Decoder
from minillm.model.ffn import GatedMLP
from minillm.model.held import held_in
from minillm.model.linear import Linear
from minillm.model.moe import Experts, MoE, Router
from minillm.model.norm import LayerNorm, Norm, norm
from minillm.model.residual.block import Block, build
from minillm.model.residual.per_layer import PerLayerEmbedding, PerLayerInput
from minillm.model.rope import Rotary
from minillm.ops import REFERENCE, Ops
from minillm.ops.visibility import Visibility
from minillm.spec import GQA, MLA, Rope

ANEW = "both agree once the module is built anew from the same spec and weights: what ran was another one"
PLAIN = "both agree once the module runs in plain PyTorch: one of its kernels is at fault"


@torch.no_grad()
def causes(
    model: Decoder, site: Site, trace: Trace, step: Step, tolerance: float, other: Decoder | None = None
) -> list[str]:
    """What explains a difference, nearest first. Where the reference is a model of minillm of another spec: that. Else
    the meanings of the spec or the weights under which the module agrees; where it agrees as it is once it is built
    anew, or with the plain ops, the way it was built or runs is at fault."""
    if other is not None and (known := _differences(model, other, site)):
        return known
    if any(held_in(each) for each in model.modules()):
        return []  # integers are a cause of their own

    def far(y: Any) -> float:
        return _distance(y, site, model, trace)

    for ops, text in ((model.ops, ANEW), (REFERENCE, PLAIN)):
        again = _again(model, site, ops)
        if again is not None and far(_given(*again, model, site, trace, step)) <= tolerance:
            return [text]
    found = [(far(y), text) for text, y in _variants(model, site, trace, step)]
    return [text for distance, text in sorted(found, key=lambda each: each[0]) if distance <= tolerance]


def _differences(model: Decoder, other: Decoder, site: Site) -> list[str]:
    if site.ours in ("embedding", "head"):
        pairs = [(s.embedding, s.logit_scale, s.logit_softcap) for s in (model.spec, other.spec)]
        names = ("embedding", "logit_scale", "logit_softcap")
        return [f"{n} is {a} here, {b} there" for n, a, b in zip(names, *pairs, strict=True) if a != b]
    parts = [_spec_of(each, site.ours, each.get_submodule(site.ours)) for each in (model, other)]
    return [] if parts[0] == parts[1] else list(differences(*parts))


def _again(model: Decoder, site: Site, ops: Ops) -> tuple[nn.Module, Any] | None:
    """The module built anew from its own spec, and that."""
    if site.ours in ("embedding", "head"):
        return None
    module = model.get_submodule(site.ours)
    part = _spec_of(model, site.ours, module)
    made = None if part is None else rebuilt(module, part, model, ops)
    return None if made is None else (made, part)


def _distance(y: Any, site: Site, model: Decoder, trace: Trace) -> float:
    """In ulps; infinite where over one token in a hundred goes to other experts."""
    eps = precision(model, trace)
    if site.ours not in trace.routes:
        return error(y, trace.gave[site.name], eps).max
    same, weights = agreement(y, trace.routes[site.ours], eps)
    return weights.max if same.float().mean() > 0.99 else math.inf


def _variants(model: Decoder, site: Site, trace: Trace, step: Step) -> Iterator[tuple[str, Any]]:
    if site.ours == "embedding":
        yield from _embeddings(model, trace)
    elif site.ours == "head":
        yield from _heads(model, trace)
    else:
        module = model.get_submodule(site.ours)
        part = _spec_of(model, site.ours, module)
        for text, changed in alternatives(part) if part is not None else ():
            other = rebuilt(module, changed, model, model.ops) if possible(changed) else None
            if other is not None:
                yield text, _given(other, changed, model, site, trace, step)
        if isinstance(module, Linear) and site.rows is not None:
            yield from _parts(module(trace.given[site.name].to(model.dtype)), site)
        for text, other in rewired(module):
            yield text, _given(other, part, model, site, trace, step)


def _parts(y: Tensor, site: Site) -> Iterator[tuple[str, Tensor]]:
    """Other rows of a fused product."""
    assert site.rows is not None
    for start in range(0, y.shape[-1] - site.rows + 1, site.rows):
        if start != site.start:
            text = (
                f"both agree where {site.part} is the rows from {start} on, not from {site.start}: parts change places"
            )
            yield text, y[..., start : start + site.rows]


def _given(module: nn.Module, part: Any, model: Decoder, site: Site, trace: Trace, step: Step) -> Any:
    """What another module, of this part of a spec, makes of the reference's input."""
    if isinstance(module, Router):
        return module(trace.given[site.ours].flatten(0, -2))
    return run(model, site, trace, reached(step, part, model, trace), module)


def _embeddings(model: Decoder, trace: Trace) -> Iterator[tuple[str, Tensor]]:
    plain, hidden = model.embedding(trace.tokens), model.spec.hidden_size
    yield "both agree where the embedding has no factor", plain
    yield (
        "both agree where the embedding's factor is sqrt(hidden size), rounded to bfloat16",
        plain * float(torch.tensor(hidden**0.5, dtype=torch.bfloat16)),
    )
    yield "both agree where the embedding's factor is sqrt(hidden size), not rounded", plain * hidden**0.5


def _heads(model: Decoder, trace: Trace) -> Iterator[tuple[str, Tensor]]:
    x, head = trace.given["head"].to(model.dtype), model.head
    weight = model.embedding.weight if head is None else head.weight
    own, bias = model.spec.logit_softcap, None if head is None else head.bias
    plain = x @ weight.T

    def capped(y: Tensor, cap: float | None = own) -> Tensor:
        return y if cap is None else cap * torch.tanh(y / cap)

    for cap in {None, 30.0} - {own}:
        yield (
            f"both agree where the logits' soft-cap is {cap}, here it is {own}",
            capped(plain if bias is None else plain + bias, cap),
        )
    if bias is not None:
        yield "both agree where the head has no bias", capped(plain)
    if head is not None:
        yield "both agree where the head is the embedding (tied)", capped(x @ model.embedding.weight.T)


def _spec_of(model: Decoder, name: str, module: nn.Module) -> Any:
    """The part of the spec that a module was built from."""
    if isinstance(module, Block):
        return model.spec.layers[int(name.rpartition(".")[2])]
    if isinstance(module, MoE):
        return module.experts.spec
    return getattr(module, "spec", None)


def rebuilt(module: nn.Module, changed: Any, model: Decoder, ops: Ops) -> nn.Module | None:
    """The module as another spec has it, with the same weights; None where they do not fit."""
    with torch.device("meta"):
        try:
            other = _made(module, changed, model, ops)
        except (AssertionError, ValueError, RuntimeError):
            return None
    wanted, held = dict(other.named_parameters()), dict(module.named_parameters())
    if any(name not in held or held[name].shape != each.shape for name, each in wanted.items()):
        return None
    other.load_state_dict({name: held[name] for name in wanted}, assign=True)
    return other.eval()


def _made(module: nn.Module, changed: Any, model: Decoder, ops: Ops) -> nn.Module:
    size = model.spec.hidden_size
    if isinstance(module, (Norm, LayerNorm)):
        width = module.weight.shape[0] if module.weight is not None else size
        return norm(changed, width, ops)
    if isinstance(module, Block):
        return Block(changed, model.spec, ops, module.index)
    if isinstance(module, (Router, Experts)):
        return type(module)(changed, size, ops)
    if isinstance(module, PerLayerEmbedding):
        return PerLayerEmbedding(changed, module.tokens, size, ops)
    if isinstance(module, PerLayerInput):
        return PerLayerInput(changed, module.index, size, ops)
    return build(changed, size, ops)


def reached(step: Step, changed: Any, model: Decoder, trace: Trace) -> Step:
    """The step with what another rotary embedding or window needs."""
    if not isinstance(changed, (GQA, MLA)):
        return step
    count, device = trace.tokens.shape[1], trace.tokens.device
    positions = torch.arange(count, device=device)[None]
    rope = changed.rope
    turned = {} if not isinstance(rope, Rope) else {rope: Rotary(rope)(positions, (count,), model.dtype)}
    seen = {changed.window: Visibility(0, count, changed.window, None, device)}
    return dataclasses.replace(
        step, rotary=step.rotary | turned, visible=step.visible | seen, slots=step.slots | {changed.window: None}
    )


def rewired(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What is no field: weights that are read in another order."""
    if isinstance(module, (GatedMLP, Experts)):
        other = copy.deepcopy(module)
        fused = other.gate_up.weight if isinstance(other, GatedMLP) else other.gate_up
        fused.copy_(torch.cat(fused.chunk(2, dim=-2)[::-1], dim=-2))
        yield "both agree where gate and up change places", other
    if isinstance(module, GroupedQueryAttention) and _tileable(module.spec):
        yield "both agree where query head i reads kv head i mod K, not i // G", _tiled(module)


def _tileable(made: GQA) -> bool:
    return 1 < made.num_kv_heads < made.num_heads and not made.gate


def _tiled(attention: GroupedQueryAttention) -> GroupedQueryAttention:
    made, other = attention.spec, copy.deepcopy(attention)
    heads = torch.arange(made.num_heads).view(-1, made.num_kv_heads).T.flatten()  # head (k, g) is g K + k
    rows = (heads[:, None] * made.head_dim + torch.arange(made.head_dim)).flatten()
    other.qkv.weight[: len(rows)] = attention.qkv.weight[rows]
    if attention.qkv.bias is not None and other.qkv.bias is not None:
        other.qkv.bias[: len(rows)] = attention.qkv.bias[rows]
    other.out.weight.copy_(attention.out.weight[:, rows])
    return other
