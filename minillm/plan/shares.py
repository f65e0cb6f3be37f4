"""What a model takes in each of several ranks, which `parallel/split.py` describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from minillm.model.outline import Outline
from minillm.parallel.kept import kept
from minillm.parallel.split import MOST, able, local
from minillm.plan.fit import Need
from minillm.spec import Decoder, MoE


def weights(sketch: Outline, stored: Mapping[str, int], ranks: int, rank: int) -> int:
    """Bytes of a rank's part of a model whose parameters take so many. What is quantised is counted by its values: its
    factors are taken to be cut as it is."""
    own = kept(sketch.model.spec, ranks, rank)
    found = {}
    for name, size in stored.items():
        part, shape = own.get(name), sketch.model.get_parameter(name).shape
        if part is not None and part.rows is not None:
            rows = shape[:-1].numel() if len(shape) > 1 else shape[0]
            size = size * sum(end - first for first, end in part.rows) // rows
        if part is not None and part.columns is not None:
            size = size * (part.columns[1] - part.columns[0]) // shape[-1]
        found[name] = size
    return sketch.total(found)


def shares(need: Need, sketch: Outline, stored: Mapping[str, int], ranks: int) -> list[Need]:
    """What is asked for of each rank. Raises ValueError where a model cannot lie in so many."""
    if ranks == 1:
        return [need]
    whole, found = max(need.weights, 1), []
    for rank in range(ranks):
        own = weights(sketch, stored, ranks, rank)
        others = {name: size * own // whole for name, size in need.others.items()}
        found.append(replace(need, spec=local(need.spec, ranks, rank), weights=own, others=others))
    return found


def whole_experts(spec: Decoder) -> int | None:
    """How many experts of a layer a rank has to itself; None where it has a slice of all, or there are none."""
    spans = [layer.ffn.own for layer in spec.layers if isinstance(layer.ffn, MoE) and layer.ffn.own is not None]
    return spans[0][1] - spans[0][0] if spans else None


def enough(need: Need, sketch: Outline, stored: Mapping[str, int], usable: int) -> int | None:
    """The smallest number of ranks each of which has no more than `usable` bytes; None where there is none."""
    for ranks in able(need.spec, MOST):
        if max(each.total() for each in shares(need, sketch, stored, ranks)) <= usable:
            return ranks
    return None
