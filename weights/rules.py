"""Which tensor of a checkpoint fills which parameter, as a table.

A rule is "pattern": "destination". `{i}` in a pattern stands for a number and is carried over to the destination,
which is a parameter, a named row block of a fused one, "name[part]", or neighbouring ones, "name[one+two]"; "name:
layout" says that the tensor's values lie otherwise (see `layout.py`). DROP says that a tensor is left out knowingly,
"DROP: reason" that users are told, "DROP or destination" that it fills what no other tensor does, and "DROP if 0.5"
that it must be this one number, which the model has without it. A pattern may end in `*`, for any rest. Where several
patterns match, the one with the fewest placeholders wins, of equals the first.
Every tensor must match one rule and every parameter must be filled exactly once: `plan` says where that fails.

A name that no pattern matches is tried once more with another beginning: without what a wrapper put in front of it, and
with or without the beginning that most patterns have. Saving the inner model leaves that one out ("layers.0…" for
"model.layers.0…"), saving a model around the whole doubles it.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from minillm.weights.layout import AnyLayout, parse

DROP = "DROP"
SPARE = f"{DROP} or "
CONSTANT = f"{DROP} if "
Rules = Mapping[str, str]
FEW = 6  # parts of a parameter: what has experts has hundreds
# What torch.compile, FSDP and gradient checkpointing put in front of a module's name, DataParallel and PEFT in front of
# all names.
WRAPPER = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
OUTER = re.compile(r"(?:module\.|base_model\.model\.)+")


@dataclass(frozen=True)
class Destination:
    """Rows start .. start + shape[0] - 1 of a parameter; of one with experts, `[E, out, in]`, rows are those of all
    experts one under the other. `whole` is the shape of the parameter, in which a tensor has all of its rows."""

    parameter: str
    start: int
    shape: tuple[int, ...]
    layout: AnyLayout | None = None
    whole: tuple[int, ...] | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of a tensor that fills these rows."""
        return (self.whole or self.shape) if self.layout is None else self.layout.shape(self.shape)


@dataclass
class Plan:
    """What a checkpoint's tensors would fill; complete when nothing is unclaimed, unfilled or twice filled."""

    assignments: dict[str, Destination] = field(default_factory=dict)  # tensor -> where it goes
    dropped: list[str] = field(default_factory=list)
    constants: dict[str, float] = field(default_factory=dict)  # of those, tensor -> the number that it must be
    reasons: dict[str, int] = field(default_factory=dict)  # what users are told -> how many tensors
    zeros: list[Destination] = field(default_factory=list)  # what no tensor fills, and need not
    spelled: dict[str, str] = field(default_factory=dict)  # tensor -> what its name would be by the rules, if it is not
    wrappers: dict[str, int] = field(default_factory=dict)  # what was taken off the names -> of how many tensors
    unclaimed: list[str] = field(default_factory=list)
    unfilled: list[str] = field(default_factory=list)
    twice_filled: list[str] = field(default_factory=list)


def plan(tensors: Collection[str], rules: Rules, destinations: Mapping[str, Destination]) -> Plan:
    """Match every tensor name with the rules; needs names only, no data."""
    result, filled, known = Plan(), set[str](), units(destinations)
    targets = _targets(tensors, rules, result)
    for tensor, target in sorted(targets.items(), key=lambda each: (each[1] or "").startswith(SPARE)):
        if target is not None and target.startswith(SPARE):
            instead = target.removeprefix(SPARE)
            target = DROP if filled.intersection(known.get(instead, [])) else instead
        if target is not None and target.startswith(DROP):
            result.dropped.append(tensor)
            if target.startswith(CONSTANT):
                result.constants[tensor] = float(target.removeprefix(CONSTANT))
            elif reason := target.removeprefix(DROP).removeprefix(": "):
                result.reasons[reason] = result.reasons.get(reason, 0) + 1
        elif target is None or (place := target.partition(": ")[0]) not in known:
            result.unclaimed.append(tensor)
        elif filled.intersection(known[place]):
            result.twice_filled.append(tensor)
        else:
            filled.update(known[place])
            result.assignments[tensor] = joined(target, known, destinations)
    result.unfilled = [name for name in destinations if name not in filled]
    return result


def _targets(tensors: Collection[str], rules: Rules, result: Plan) -> dict[str, str | None]:
    """Where each tensor goes; the result is told what names were read otherwise than they are."""
    table, found = _Table(rules), dict[str, str | None]()
    for tensor in tensors:
        found[tensor], name, wrapper = table.find(tensor)
        if name != tensor:
            result.spelled[tensor] = name
        if wrapper:
            result.wrappers[wrapper] = result.wrappers.get(wrapper, 0) + 1
    return found


def sources(tensors: Collection[str], rules: Rules, target: str) -> list[str]:
    """The tensors that rules with this very target are for."""
    table = _Table({pattern: to for pattern, to in rules.items() if to == target}, _beginning(rules))
    return [tensor for tensor in tensors if table.find(tensor)[0]]


def units(destinations: Mapping[str, Destination]) -> dict[str, list[str]]:
    """All that a rule can fill, and the destinations it consists of: each by itself, all of a parameter, and where that
    has few also neighbours, "name[one+two]"."""
    found: dict[str, list[str]] = {}
    for name, to in destinations.items():
        found.setdefault(to.parameter, []).append(name)
    runs: dict[str, list[str]] = {}
    for parameter, names in found.items():
        for first, last in itertools.combinations(range(len(names) if len(names) <= FEW else 0), 2):
            parts = (name.removeprefix(parameter)[1:-1] for name in names[first : last + 1])
            runs[f"{parameter}[{'+'.join(parts)}]"] = names[first : last + 1]
    return found | runs | {name: [name] for name in destinations}


def joined(target: str, known: Mapping[str, list[str]], destinations: Mapping[str, Destination]) -> Destination:
    """The rows that a rule's target names, with the layout it gives."""
    unit, _, layout = target.partition(": ")
    found = [destinations[name] for name in known[unit]]
    shape = (sum(each.shape[0] for each in found), *found[0].shape[1:])
    whole = found[0].whole if unit == found[0].parameter else None
    return replace(found[0], shape=shape, layout=parse(layout) if layout else None, whole=whole)


class _Table:
    """The rules in the order in which they are tried."""

    def __init__(self, rules: Rules, beginning: str | None = None):
        self.beginning = beginning or _beginning(rules)
        self.compiled = [(_compile(pattern), target) for pattern, target in sorted(rules.items(), key=_placeholders)]

    def find(self, tensor: str) -> tuple[str | None, str, str]:
        """Where a tensor goes, None where no rule says so; the name that a rule has; what a wrapper put in front."""
        for name, wrapper in _spellings(tensor, self.beginning):
            for pattern, target in self.compiled:
                if match := pattern.fullmatch(name):
                    place = target if target.startswith(DROP) else target.format(**match.groupdict())
                    return place, name, wrapper
        return None, tensor, ""


def _beginning(rules: Rules) -> str:
    """What most patterns begin with, such as "model."."""
    return collections.Counter(pattern.partition(".")[0] for pattern in rules).most_common(1)[0][0] + "."


def _spellings(tensor: str, beginning: str) -> Iterator[tuple[str, str]]:
    """The names that a tensor may be meant by, each with the wrapper that was taken off it."""
    yield tensor, ""
    inner = WRAPPER.sub("", tensor)
    wrapper = "".join(dict.fromkeys(WRAPPER.findall(tensor)))
    if outer := OUTER.match(inner):
        inner, wrapper = inner[outer.end() :], wrapper + outer.group()
    for name in (inner, inner.removeprefix(beginning), beginning + inner):
        if name != tensor:
            yield name, wrapper


def _placeholders(rule: tuple[str, str]) -> int:
    return rule[0].count("{") + rule[0].count("*")


def _compile(pattern: str) -> re.Pattern[str]:
    stem = pattern.removesuffix("*")
    pieces = re.split(r"\{(\w+)\}", stem)
    literal, names = pieces[0::2], pieces[1::2]
    groups = [rf"(?P<{name}>0|[1-9][0-9]*)" for name in names] + ["" if stem == pattern else ".*"]
    return re.compile("".join(re.escape(text) + group for text, group in zip(literal, groups, strict=True)))


def rows(parameter: Tensor, to: Destination) -> Tensor:
    """The rows of a parameter that a tensor fills: a view."""
    flat = parameter.flatten(0, -2) if parameter.dim() > 1 else parameter
    return flat[to.start : to.start + to.shape[0]]
