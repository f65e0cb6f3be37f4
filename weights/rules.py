"""Which tensor of a checkpoint fills which parameter, as a table.

A rule is "pattern": "destination". `{i}` in a pattern stands for a number and is carried over to the destination; a
destination "name[part]" is a named row block of a fused parameter; DROP says that a tensor is left out knowingly. Where
several patterns match, the one with the fewest placeholders wins. Every tensor must match one rule and every parameter
must be filled exactly once: `plan` says where that fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

DROP = "DROP"
Rules = Mapping[str, str]


@dataclass(frozen=True)
class Destination:
    """Rows start .. start + shape[0] - 1 of a parameter."""

    parameter: str
    start: int
    shape: tuple[int, ...]


@dataclass
class Plan:
    """What a checkpoint's tensors would fill; complete when nothing is unclaimed, unfilled or twice filled."""

    assignments: dict[str, Destination] = field(default_factory=dict)  # tensor -> where it goes
    dropped: list[str] = field(default_factory=list)
    unclaimed: list[str] = field(default_factory=list)
    unfilled: list[str] = field(default_factory=list)
    twice_filled: list[str] = field(default_factory=list)


def plan(tensors: Iterable[str], rules: Rules, destinations: Mapping[str, Destination]) -> Plan:
    """Match every tensor name with the rules; needs names only, no data."""
    result = Plan()
    compiled = [(_compile(pattern), target) for pattern, target in sorted(rules.items(), key=_placeholders)]
    filled: set[str] = set()
    for tensor in tensors:
        target = _match(tensor, compiled)
        if target == DROP:
            result.dropped.append(tensor)
        elif target is None or target not in destinations:
            result.unclaimed.append(tensor)
        elif target in filled:
            result.twice_filled.append(tensor)
        else:
            filled.add(target)
            result.assignments[tensor] = destinations[target]
    result.unfilled = [name for name in destinations if name not in filled]
    return result


def _placeholders(rule: tuple[str, str]) -> int:
    return rule[0].count("{")


def _compile(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", pattern)
    literal, names = pieces[0::2], pieces[1::2]
    groups = [rf"(?P<{name}>0|[1-9][0-9]*)" for name in names] + [""]
    return re.compile("".join(re.escape(text) + group for text, group in zip(literal, groups, strict=True)))


def _match(tensor: str, compiled: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in compiled:
        if match := pattern.fullmatch(tensor):
            return target if target == DROP else target.format(**match.groupdict())
    return None
