"""A model as a ring of stages, each with some of its layers: pipeline parallelism (Huang et al., arXiv:1811.06965).

    ids -> embedding -> layers 0-19 -> layers 20-31 -> norm, head -> logits
           stage 0                     stage 1         stage 0

Only hidden states cross, once per stage, so an ordinary network will do, and stages may be as unlike as their machines:
each takes layers by the memory that it has. The first has embedding and head as well, which are one matrix where they
are tied, and is given back what the last one makes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from minillm.model.pools import group_of
from minillm.parallel.split import Span
from minillm.spec import GQA, Attention, Decoder, Fronted


def shares(
    layers: Sequence[int], ends: int, free: Sequence[int], can: Callable[[Span], bool] = lambda span: True
) -> list[Span]:
    """Which layers each stage has, one at least: layers take so many bytes, embedding and head `ends` of the first
    stage, and stages have so many free, of which the fullest uses the least share that it can. A stage `can` have some
    spans only. Raises ValueError where there are not as many stages as `free` has."""
    count, stages = len(layers), len(free)
    if stages > count:
        raise ValueError(f"--stages is {stages}, and the model has {count} layers: give at most as many")
    before = [0, *itertools.accumulate(layers)]
    found: dict[int, tuple[float, list[Span]]] = {0: (0.0, [])}  # by how many layers are placed
    for stage, room in enumerate(free):
        placed = found
        found = {}
        for end in range(stage + 1, count - stages + stage + 2):
            ways = [
                (max(fullest, (before[end] - before[first] + (0 if stage else ends)) / room), [*spans, (first, end)])
                for first, (fullest, spans) in placed.items()
                if first < end and can((first, end))
            ]
            if ways:
                found[end] = min(ways)
    if count not in found:
        raise ValueError(f"--stages is {stages}, and the layers of this model cannot be cut into as many; give fewer")
    return found[count][1]


def stated(text: str, count: int) -> list[Span]:
    """What --layers "20,12" says. Raises ValueError for numbers that are not those of a model of `count` layers."""
    numbers = [int(each) if each.strip().isdecimal() else 0 for each in text.split(",")]
    if min(numbers) < 1 or sum(numbers) != count:
        raise ValueError(f"--layers is {text[:40]!r}, expected numbers of layers of each stage, {count} in all")
    ends = [sum(numbers[:each]) for each in range(len(numbers) + 1)]
    return list(itertools.pairwise(ends))


def local(decoder: Decoder, spans: Sequence[Span], stage: int) -> Decoder:
    """The spec of what a stage computes. Raises ValueError where layers cannot be told apart so."""
    check(decoder, spans)
    layers = []
    for layer in decoder.layers[slice(*spans[stage])]:
        made = layer.attention
        if isinstance(made, Attention) and made.lender is not None:
            layer = replace(layer, attention=made.borrowing(made.lender - spans[stage][0]))
        layers.append(layer)
    if stage == 0:
        return replace(decoder, layers=tuple(layers))
    nothing = replace(decoder.embedding, scale=1.0, positions=None, norm=None, rows=(0, 0))
    return replace(decoder, layers=tuple(layers), embedding=nothing, tied=True, head_bias=False)


def check(decoder: Decoder, spans: Sequence[Span]) -> None:
    """Raise ValueError, with the reason, where a model cannot be cut between these layers."""
    looks_back = any(isinstance(layer.attention, Fronted) for layer in decoder.layers)
    if decoder.per_layer is not None or decoder.streams is not None or looks_back:
        raise ValueError("--stages: each layer of this model is given more than hidden states; split it by --ranks")
    for span in spans:
        if reason := lacks(decoder, span):
            raise ValueError(f"--stages: {reason}")


def lacks(decoder: Decoder, span: Span) -> str | None:
    """Why these layers cannot be a stage; None where they can."""
    first, end = span
    groups = [{group_of(mixer) for mixer in layer.mixers} for layer in decoder.layers]
    if set().union(*groups[first:end]) != set().union(*groups):
        some = f"layers {first} to {end - 1} are not of all kinds that the model has, which keep different caches"
        return f"{some}; give each stage some of each by --layers, or fewer stages"
    for index in range(first, end):
        made = decoder.layers[index].attention
        if isinstance(made, Attention) and made.lender is not None and not first <= made.lender < end:
            taken = "reads the keys" if isinstance(made, GQA) else "takes the choice of keys"
            return f"layer {index} {taken} of layer {made.lender}, of another stage"
    return None


def name(parameter: str, span: Span, stage: int) -> str | None:
    """What a stage calls a parameter of the whole model; None where another has it."""
    if not parameter.startswith("layers."):
        return parameter if stage == 0 or parameter in ("norm.weight", "norm.bias") else None
    _, number, rest = parameter.split(".", 2)
    return f"layers.{int(number) - span[0]}.{rest}" if span[0] <= int(number) < span[1] else None
