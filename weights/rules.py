"""Which tensor of a checkpoint fills which parameter, as a table.

A rule is "pattern": "destination". `{i}` in a pattern stands for a number and is carried over to the destination,
which is a parameter or a named row block of a fused one, "name[part]"; "name: layout" says that the tensor's values lie
otherwise (see `layout.py`). DROP says that a tensor is left out knowingly, and "DROP: reason" that users are told. A
pattern may end in `*`, for any rest. Where several patterns match, the one with
the fewest placeholders wins, of equals the first. Every tensor must match one rule and every parameter must be filled
exactly once: `plan` says where that fails. The factors of a quantised tensor go wherever that goes; the companions of
integers (`ints.py`) to those of the parameter that these fill, all of them row by row whatever the layout.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minillm.weights import ints, schemes
from minillm.weights.layout import Layout

DROP = "DROP"
Rules = Mapping[str, str]


@dataclass(frozen=True)
class Destination:
    """Rows start .. start + shape[0] - 1 of a parameter; of one with experts, `[E, out, in]`, rows are those of all
    experts one under the other."""

    parameter: str
    start: int
    shape: tuple[int, ...]
    layout: Layout | None = None
    dtype: torch.dtype = torch.float32

    @property
    def integer(self) -> bool:
        """Whether the parameter is a part of one held as integers, which a tensor must have as it is."""
        return self.dtype in ints.DTYPES

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of a tensor that fills these rows."""
        return self.shape if self.layout is None else self.layout.shape(self.shape)


@dataclass
class Plan:
    """What a checkpoint's tensors would fill; complete when nothing is unclaimed, unfilled or twice filled."""

    assignments: dict[str, Destination] = field(default_factory=dict)  # tensor -> where it goes
    scales: dict[str, str] = field(default_factory=dict)  # quantised tensor -> the tensor of its factors
    dropped: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)  # what users are told -> how many tensors
    unclaimed: list[str] = field(default_factory=list)
    unfilled: list[str] = field(default_factory=list)
    twice_filled: list[str] = field(default_factory=list)


def plan(tensors: Collection[str], rules: Rules, destinations: Mapping[str, Destination]) -> Plan:
    """Match every tensor name with the rules; needs names only, no data."""
    result = Plan()
    compiled = [(_compile(pattern), target) for pattern, target in sorted(rules.items(), key=_placeholders)]
    names, filled, known = set(tensors), set[str](), units(destinations)
    for tensor in tensors:
        matrix, whole = schemes.matrix_of(tensor) or tensor, ints.matrix_of(tensor)
        is_scale = matrix != tensor and matrix in names
        if whole in names:
            target = _of_companion(_match(whole, compiled), tensor.removeprefix(whole))
        else:
            target = _match(matrix if is_scale else tensor, compiled)
        if target is not None and target.startswith(DROP):
            result.dropped.append(tensor)
            if reason := target.removeprefix(DROP).removeprefix(": "):
                result.reasons[reason] = result.reasons.get(reason, 0) + 1
        elif is_scale and matrix in result.scales:
            result.twice_filled.append(tensor)
        elif is_scale:
            result.scales[matrix] = tensor
        elif target is None or (place := target.partition(": ")[0]) not in known:
            result.unclaimed.append(tensor)
        elif filled.intersection(known[place]):
            result.twice_filled.append(tensor)
        else:
            filled.update(known[place])
            result.assignments[tensor] = joined(target, known, destinations)
    result.scales = {matrix: scale for matrix, scale in result.scales.items() if matrix in result.assignments}
    result.unfilled = [name for name in destinations if name not in filled]
    return result


def units(destinations: Mapping[str, Destination]) -> dict[str, list[str]]:
    """All that a rule can fill, and the destinations it consists of: each by itself, and all of a parameter."""
    found: dict[str, list[str]] = {}
    for name, to in destinations.items():
        found.setdefault(to.parameter, []).append(name)
    return found | {name: [name] for name in destinations}


def joined(target: str, known: Mapping[str, list[str]], destinations: Mapping[str, Destination]) -> Destination:
    """The rows that a rule's target names, with the layout it gives."""
    unit, _, layout = target.partition(": ")
    found = [destinations[name] for name in known[unit]]
    shape = (sum(each.shape[0] for each in found), *found[0].shape[1:])
    first = found[0]
    lies = Layout.parse(layout) if layout and not first.integer else None
    return Destination(first.parameter, first.start, shape, lies, first.dtype)


def _of_companion(target: str | None, ending: str) -> str | None:
    """Where a companion goes, given the target of its matrix."""
    if target is None or target.startswith(DROP):
        return target
    parameter, bracket, part = target.partition(": ")[0].partition("[")
    return f"{parameter}{ending}{bracket}{part}"


def _placeholders(rule: tuple[str, str]) -> int:
    return rule[0].count("{") + rule[0].count("*")


def _compile(pattern: str) -> re.Pattern[str]:
    stem = pattern.removesuffix("*")
    pieces = re.split(r"\{(\w+)\}", stem)
    literal, names = pieces[0::2], pieces[1::2]
    groups = [rf"(?P<{name}>0|[1-9][0-9]*)" for name in names] + ["" if stem == pattern else ".*"]
    return re.compile("".join(re.escape(text) + group for text, group in zip(literal, groups, strict=True)))


def _match(tensor: str, compiled: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in compiled:
        if match := pattern.fullmatch(tensor):
            return target if target.startswith(DROP) else target.format(**match.groupdict())
    return None


def rows(parameter: Tensor, to: Destination) -> Tensor:
    """The rows of a parameter that a tensor fills: a view."""
    flat = parameter.flatten(0, -2) if parameter.dim() > 1 else parameter
    return flat[to.start : to.start + to.shape[0]]
