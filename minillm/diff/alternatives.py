"""What else a spec may mean: one field changed at a time, to values that implementations have been seen to differ in.

The table `TRY` has the fields and the values worth trying; `alternatives` applies it at any depth of a spec.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from minillm import spec as vocabulary
from minillm.spec import GQA, MLA, Layer, Rope, Scores, YarnScaling

NORM_EPS = (1e-5, 1e-6, 1e-8, 1e-12)
THETAS = (1e4, 1e5, 5e5, 1e6, 1e7)


def _scores(attention: GQA) -> list[Scores]:
    scales, own = (None, 1.0, attention.num_heads**-0.5, attention.head_dim**-0.5), attention.scores
    capped = [dataclasses.replace(own, softcap=cap) for cap in (None, 20.0, 30.0, 50.0)]
    return [*(dataclasses.replace(own, scale=scale) for scale in scales), *capped]


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
    (GQA, "scores"): _scores,
    (GQA, "qk_norm"): (None,),
    (GQA, "weakened"): (None, "sinks", vocabulary.Gate()),
    (vocabulary.GatedDeltaNet, "beta_factor"): (1.0, 2.0),
    (vocabulary.ChannelDelta, "bound"): (None, -5.0),
    (vocabulary.Indexer, "top_k"): lambda each: [each.top_k + i for i in (-1, 1) if each.top_k + i > 0],
    (vocabulary.Indexer, "layout"): None,
    (vocabulary.Indexer, "last"): None,
    (vocabulary.BlockIndexer, "top_k"): lambda each: [each.top_k + i for i in (-1, 1) if each.top_k + i > 0],
    (vocabulary.BlockIndexer, "size"): lambda each: (2 * each.size, each.size // 2 or 1),
    (vocabulary.BlockIndexer, "local"): (0, 1),
    (MLA, "score_factor"): lambda each: (1.0, each.score_factor**0.5, each.score_factor**2),
    (vocabulary.GatedMLP, "activation"): None,
    (vocabulary.GatedMLP, "sparsity"): (0.0,),
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
    (vocabulary.Router, "normalize"): (None, "logits"),
    (vocabulary.Router, "jitter"): (0.0, 0.01),
    (Layer, "parallel"): None,
    (Layer, "post_attention_norm"): (None,),
    (Layer, "post_ffn_norm"): (None,),
}


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


def possible(part: Any) -> bool:
    """Whether a router has enough to choose from, and an attention as many values as it turns."""
    if isinstance(part, vocabulary.Router):
        return part.top_k <= part.num_experts // part.num_groups * part.top_groups
    if not isinstance(part, GQA) or part.rope is None:
        return True
    scaling, dim = part.rope.scaling, part.rope.dim
    fits = not isinstance(scaling, vocabulary.LongRopeScaling) or 2 * len(scaling.long_factors) == dim
    return fits and 2 <= dim <= part.head_dim


def _allowed(kind: Any) -> Sequence[Any]:
    if kind is bool:
        return (False, True)
    parts = [typing.get_args(each) or (each,) for each in typing.get_args(kind)]  # a word, or words beside a class
    return [each for part in parts for each in part if not isinstance(each, type)]


def _sentence(own: type, where: str, value: Any, other: Any) -> str:
    if isinstance(value, Scores):  # of which one field differs
        name = "scale" if value.scale != other.scale else "softcap"
        return _sentence(own, f"{where}.{name}", getattr(value, name), getattr(other, name))
    return f"both agree where {where} is {_word(other)}, here it is {_word(value)}: {MEANING.get(own, own.__name__)}"


MEANING: dict[type, str] = {
    vocabulary.Norm: "the numbers of the norm",
    vocabulary.LayerNorm: "the numbers of the norm",
    Rope: "rotary position embedding",
    YarnScaling: "YaRN's factor on cos and sin",
    GQA: "attention",
    vocabulary.GatedDeltaNet: "the recurrence",
    vocabulary.ChannelDelta: "the recurrence",
    MLA: "the factor on the scores (mscale²)",
    vocabulary.Indexer: "which keys the indexer leaves",
    vocabulary.BlockIndexer: "which keys the indexer leaves",
    vocabulary.GatedMLP: "the activation",
    vocabulary.MLP: "the activation",
    vocabulary.MoE: "the experts",
    vocabulary.Router: "how the router chooses and weighs",
    Layer: "how a layer adds up",
}


def differences(own: Any, other: Any, path: str = "") -> Iterator[str]:
    """The fields, at any depth, in which two specs of one kind of part differ."""
    if type(own) is not type(other) or not dataclasses.is_dataclass(own):
        yield f"{path.removesuffix('.')} is {_word(own)} here, {_word(other)} there"
        return
    for field in dataclasses.fields(own):
        one, two = getattr(own, field.name), getattr(other, field.name)
        if one != two:
            yield from differences(one, two, f"{path}{field.name}.")


def _word(value: Any) -> str:
    return type(value).__name__ if dataclasses.is_dataclass(value) else str(value)
