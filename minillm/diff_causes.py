"""Why a module differs: the other meaning that explains it, found by experiment.

The module is built again with one field of its spec changed, with the same weights, and
gets the reference's input; where its output then agrees, that field is the cause. The table of fields and of the values
worth trying is below: they are what implementations of these models have been seen to differ in.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minillm import quantised
from minillm import spec as vocabulary
from minillm.attention import GroupedQueryAttention, Step
from minillm.diff_compare import agreement, error, precision, run
from minillm.diff_names import Site
from minillm.diff_trace import Trace
from minillm.ffn import GatedMLP
from minillm.linear import Linear
from minillm.model import Block, Decoder, build
from minillm.moe import Experts, MoE, Router
from minillm.norm import LayerNorm, Norm, norm
from minillm.rope import Rotary
from minillm.spec import GQA, MLA, Layer, Rope, YarnScaling
from minillm.visibility import Visibility

NORM_EPS = (1e-5, 1e-6, 1e-8, 1e-12)
THETAS = (1e4, 1e5, 5e5, 1e6, 1e7)


def _scales(attention: GQA) -> tuple[float | None, ...]:
    return None, 1.0, attention.num_heads**-0.5, attention.head_dim**-0.5


# (class, field) -> what to try: values, a function of the object that gives them, or None for all that its type allows.
TRY: dict[tuple[type, str], Any] = {
    (vocabulary.Norm, "eps"): NORM_EPS,
    (vocabulary.Norm, "offset"): (0.0, 1.0),
    (vocabulary.Norm, "cast"): None,
    (vocabulary.LayerNorm, "eps"): NORM_EPS,
    (Rope, "layout"): None,
    (Rope, "scaling"): (None,),
    (Rope, "theta"): THETAS,
    (Rope, "dim"): lambda rope: (2 * rope.dim, rope.dim // 2, rope.dim // 4),
    (vocabulary.LinearScaling, "factor"): lambda each: (1 / each.factor,),
    (YarnScaling, "attention_factor"): lambda each: (1.0, 0.1 * math.log(each.factor) + 1),
    (YarnScaling, "truncate"): None,
    (GQA, "window"): lambda each: (None, *(each.window + i for i in (-1, 1) if each.window > 1)) if each.window else (),
    (GQA, "clip"): (None,),
    (GQA, "scale"): _scales,
    (GQA, "softcap"): (None, 20.0, 30.0, 50.0),
    (GQA, "qk_norm"): (None,),
    (GQA, "sinks"): None,
    (MLA, "score_factor"): lambda each: (1.0, each.score_factor**0.5, each.score_factor**2),
    (vocabulary.GatedMLP, "activation"): None,
    (vocabulary.MLP, "activation"): None,
    (vocabulary.MoE, "activation"): ("silu", "gelu", "gelu_tanh"),
    (vocabulary.MoE, "shared"): (None,),
    (vocabulary.MoE, "shared_gate"): None,
    (vocabulary.Router, "score"): None,
    (vocabulary.Router, "renormalize"): None,
    (vocabulary.Router, "scale"): (1.0,),
    (vocabulary.Router, "bias"): None,
    (vocabulary.Router, "num_groups"): (1,),
    (vocabulary.Router, "top_groups"): lambda each: range(1, each.num_groups + 1),
    (vocabulary.Router, "group_score"): None,
    (vocabulary.Router, "standardize"): None,
    (vocabulary.Router, "jitter"): (0.0, 0.01),
    (Layer, "parallel"): None,
    (Layer, "post_attention_norm"): (None,),
    (Layer, "post_ffn_norm"): (None,),
}


@torch.no_grad()
def causes(model: Decoder, site: Site, trace: Trace, step: Step, tolerance: float) -> list[str]:
    """The meanings of a module's spec or weights under which it agrees with the reference. Where it agrees as it is
    once it is built anew, there is none: then the way it was built or runs is at fault."""
    if any(quantised.held_in(each) for each in model.modules()):
        return []  # integers are a cause of their own
    if site.ours not in ("embedding", "head"):
        module = model.get_submodule(site.ours)
        part = _spec_of(model, site.ours, module)
        again = rebuilt(module, part, model) if part is not None else None
        if again is not None and _agrees(
            _given(again, model, site, trace, reached(step, part, model, trace)), site, model, trace, tolerance
        ):
            return ["both agree once the module is built anew from the same spec and weights: what ran was another one"]
    return [text for text, y in _variants(model, site, trace, step) if _agrees(y, site, model, trace, tolerance)]


def _agrees(y: Any, site: Site, model: Decoder, trace: Trace, tolerance: float) -> bool:
    eps = precision(model, trace)
    if site.ours in trace.routes:
        same, weights = agreement(y, trace.routes[site.ours], eps)
        return bool(same.float().mean() > 0.99) and weights.max <= tolerance
    return error(y, trace.gave[site.name], eps).max <= tolerance


def _variants(model: Decoder, site: Site, trace: Trace, step: Step) -> Iterator[tuple[str, Any]]:
    if site.ours == "embedding":
        yield from _embeddings(model, trace)
    elif site.ours == "head":
        yield from _heads(model, trace)
    else:
        module = model.get_submodule(site.ours)
        part = _spec_of(model, site.ours, module)
        for text, changed in alternatives(part) if part is not None else ():
            other = rebuilt(module, changed, model) if _possible(changed) else None
            if other is not None:
                yield text, _given(other, model, site, trace, reached(step, changed, model, trace))
        if isinstance(module, Linear) and site.rows is not None:
            yield from _parts(module(trace.given[site.name].to(model.dtype)), site)
        for text, other in rewired(module):
            yield text, _given(other, model, site, trace, step)


def _parts(y: Tensor, site: Site) -> Iterator[tuple[str, Tensor]]:
    """Other rows of a fused product."""
    assert site.rows is not None
    for start in range(0, y.shape[-1] - site.rows + 1, site.rows):
        if start != site.start:
            text = (
                f"both agree where {site.part} is the rows from {start} on, not from {site.start}: parts change places"
            )
            yield text, y[..., start : start + site.rows]


def _given(module: nn.Module, model: Decoder, site: Site, trace: Trace, step: Step) -> Any:
    if isinstance(module, Router):
        return module(trace.given[site.ours].flatten(0, -2))
    return run(model, site, trace, step, module)


def _embeddings(model: Decoder, trace: Trace) -> Iterator[tuple[str, Tensor]]:
    plain, hidden = model.embedding(trace.tokens), model.spec.hidden_size
    yield "the embedding has no factor", plain
    yield (
        "the embedding's factor is sqrt(hidden size), rounded to bfloat16",
        plain * float(torch.tensor(hidden**0.5, dtype=torch.bfloat16)),
    )
    yield "the embedding's factor is sqrt(hidden size), not rounded", plain * hidden**0.5


def _heads(model: Decoder, trace: Trace) -> Iterator[tuple[str, Tensor]]:
    x, head = trace.given["head"].to(model.dtype), model.head
    weight = model.embedding.weight if head is None else head.weight
    plain = x @ weight.T
    biased = plain if head is None or head.bias is None else plain + head.bias
    for cap in (None, 30.0, model.spec.logit_softcap):
        y = biased if cap is None else cap * torch.tanh(biased / cap)
        yield f"the logits' soft-cap is {cap}", y
    yield "the head has no bias", plain
    yield "the head is the embedding (tied)", x @ model.embedding.weight.T


def _spec_of(model: Decoder, name: str, module: nn.Module) -> Any:
    """The part of the spec that a module was built from."""
    if isinstance(module, Block):
        return model.spec.layers[int(name.rpartition(".")[2])]
    if isinstance(module, MoE):
        return module.experts.spec
    return getattr(module, "spec", None)


def alternatives(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A spec with one field changed, at any depth, and the words for it."""
    hints, own = typing.get_type_hints(type(part)), type(part)
    for field in dataclasses.fields(part):
        value, where = getattr(part, field.name), f"{path}{field.name}"
        if (own, field.name) in TRY:
            tried = TRY[own, field.name]
            values: Any = tried(part) if callable(tried) else tried
            for other in _allowed(hints[field.name]) if tried is None else values:
                if other != value:
                    yield _sentence(own, where, value, other), dataclasses.replace(part, **{field.name: other})
        if dataclasses.is_dataclass(value) and not isinstance(part, (Layer, vocabulary.MoE)):  # whose parts are sites
            for text, inner in alternatives(value, f"{where}."):
                yield text, dataclasses.replace(part, **{field.name: inner})


def _possible(part: Any) -> bool:
    """Whether a router has enough to choose from, and an attention as many values as it turns."""
    if isinstance(part, vocabulary.Router):
        return part.top_k <= part.num_experts // part.num_groups * part.top_groups
    if not isinstance(part, GQA):
        return True
    scaling, dim = part.rope.scaling, part.rope.dim
    fits = not isinstance(scaling, vocabulary.LongRopeScaling) or 2 * len(scaling.long_factors) == dim
    return fits and 2 <= dim <= part.head_dim


def _allowed(kind: Any) -> Sequence[Any]:
    return (False, True) if kind is bool else typing.get_args(kind)


def _sentence(own: type, where: str, value: Any, other: Any) -> str:
    def word(each: Any) -> str:
        return type(each).__name__ if dataclasses.is_dataclass(each) else str(each)

    return f"both agree where {where} is {word(other)}, here it is {word(value)}: {MEANING.get(own, own.__name__)}"


MEANING: dict[type, str] = {
    vocabulary.Norm: "the numbers of the norm",
    vocabulary.LayerNorm: "the numbers of the norm",
    Rope: "rotary position embedding",
    YarnScaling: "YaRN's factor on cos and sin",
    GQA: "attention",
    MLA: "the factor on the scores (mscale²)",
    vocabulary.GatedMLP: "the activation",
    vocabulary.MLP: "the activation",
    vocabulary.MoE: "the experts",
    vocabulary.Router: "how the router chooses and weighs",
    Layer: "how a layer adds up",
}


def rebuilt(module: nn.Module, changed: Any, model: Decoder) -> nn.Module | None:
    """The module as another spec has it, with the same weights; None where they do not fit."""
    with torch.device("meta"):
        try:
            other = _made(module, changed, model)
        except (AssertionError, ValueError, RuntimeError):
            return None
    wanted, held = dict(other.named_parameters()), dict(module.named_parameters())
    if any(name not in held or held[name].shape != each.shape for name, each in wanted.items()):
        return None
    other.load_state_dict({name: held[name] for name in wanted}, assign=True)
    return other.eval()


def _made(module: nn.Module, changed: Any, model: Decoder) -> nn.Module:
    size, ops = model.spec.hidden_size, model.ops
    if isinstance(module, (Norm, LayerNorm)):
        width = module.weight.shape[0] if module.weight is not None else size
        return norm(changed, width, ops)
    if isinstance(module, Block):
        return Block(changed, size, ops)
    if isinstance(module, (Router, Experts)):
        return type(module)(changed, size, ops)
    return build(changed, size, ops)


def reached(step: Step, changed: Any, model: Decoder, trace: Trace) -> Step:
    """The step with what another rotary embedding or window needs."""
    if not isinstance(changed, (GQA, MLA)):
        return step
    count, device = trace.tokens.shape[1], trace.tokens.device
    positions = torch.arange(count, device=device)[None]
    turned = {changed.rope: Rotary(changed.rope)(positions, (count,), model.dtype)}
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
    if isinstance(module, GroupedQueryAttention) and 1 < module.spec.num_kv_heads < module.spec.num_heads:
        yield "both agree where query head i reads kv head i mod K, not i // G", _tiled(module)


def _tiled(attention: GroupedQueryAttention) -> GroupedQueryAttention:
    made, other = attention.spec, copy.deepcopy(attention)
    heads = torch.arange(made.num_heads).view(-1, made.num_kv_heads).T.flatten()  # head (k, g) is g K + k
    rows = (heads[:, None] * made.head_dim + torch.arange(made.head_dim)).flatten()
    other.qkv.weight[: len(rows)] = attention.qkv.weight[rows]
    if attention.qkv.bias is not None and other.qkv.bias is not None:
        other.qkv.bias[: len(rows)] = attention.qkv.bias[rows]
    other.out.weight.copy_(attention.out.weight[:, rows])
    return other
