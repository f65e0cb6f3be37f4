"""Which tensor of a checkpoint fills which parameter, as a table.

A rule is "pattern": "destination". `{i}` in a pattern stands for a number and is carried over to the destination; a
destination "name[part]" is a named row block of a fused parameter, "name[a,b]" two of them one under the other, and
"name[16 x a,b]" sixteen times some rows of each; DROP says that a tensor is left out knowingly, and
"DROP: reason" that users are told. A pattern may end in `*`, for any rest. Where several patterns match, the one with
the fewest placeholders wins, of equals the first. Every tensor must match one rule and every parameter must be filled
exactly once: `plan` says where that fails. The factors of an fp8 tensor go wherever that tensor goes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from minillm.weights.fp8 import SCALE

DROP = "DROP"
Rules = Mapping[str, str]


@dataclass(frozen=True)
class Destination:
    """Rows start .. start + shape[0] - 1 of a parameter; of one with experts, `[E, out, in]`, rows are those of all
    experts one under the other."""

    parameter: str
    start: int
    shape: tuple[int, ...]
    times: int = 1  # the tensor has, so many times over,
    parts: int = 1  # some rows of each of so many equal blocks


@dataclass
class Plan:
    """What a checkpoint's tensors would fill; complete when nothing is unclaimed, unfilled or twice filled."""

    assignments: dict[str, Destination] = field(default_factory=dict)  # tensor -> where it goes
    scales: dict[str, str] = field(default_factory=dict)  # fp8 tensor -> the tensor of its factors
    dropped: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)  # what users are told -> how many tensors
    unclaimed: list[str] = field(default_factory=list)
    unfilled: list[str] = field(default_factory=list)
    twice_filled: list[str] = field(default_factory=list)


def plan(tensors: Collection[str], rules: Rules, destinations: Mapping[str, Destination]) -> Plan:
    """Match every tensor name with the rules; needs names only, no data."""
    result = Plan()
    compiled = [(_compile(pattern), target) for pattern, target in sorted(rules.items(), key=_placeholders)]
    names, filled = set(tensors), set[str]()
    for tensor in tensors:
        matrix = tensor.removesuffix(SCALE)
        is_scale = matrix != tensor and matrix in names and not matrix.endswith(SCALE)
        target = _match(matrix if is_scale else tensor, compiled)
        if target is not None and target.startswith(DROP):
            result.dropped.append(tensor)
            if reason := target.removeprefix(DROP).removeprefix(": "):
                result.reasons[reason] = result.reasons.get(reason, 0) + 1
        elif is_scale:
            result.scales[matrix] = tensor
        elif target is None or (place := _place(target, destinations)) is None:
            result.unclaimed.append(tensor)
        elif filled.intersection(place[0]):
            result.twice_filled.append(tensor)
        else:
            filled.update(place[0])
            result.assignments[tensor] = place[1]
    result.scales = {matrix: scale for matrix, scale in result.scales.items() if matrix in result.assignments}
    result.unfilled = [name for name in destinations if name not in filled]
    return result


def _place(target: str, destinations: Mapping[str, Destination]) -> tuple[list[str], Destination] | None:
    """The destinations that a target names, and all their rows as one; None where there are no such ones."""
    several = re.fullmatch(r"(.+)\[(?:(\d+) x )?([^\]]+,[^\]]+)\]", target)
    names = [f"{several[1]}[{part}]" for part in several[3].split(",")] if several else [target]
    if any(name not in destinations for name in names):
        return None
    found = [destinations[name] for name in names]
    shape = (sum(each.shape[0] for each in found), *found[0].shape[1:])
    times = int(several[2] or 1) if several else 1
    return names, Destination(found[0].parameter, found[0].start, shape, times, len(found))


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
