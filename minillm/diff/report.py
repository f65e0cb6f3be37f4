"""What `diff` found, for programs, for people, and as a picture."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.diff.compare import Error, Row
from minillm.diff.names import Site
from minillm.diff.replay import Op
from minillm.guard.screen import printable
from minillm.llm import LLM
from minillm.report.picture import COLOURS, MARKERS, plain, quiet, save

COARSE = 0.01  # of a row's size: a tolerance that lets other meanings pass
LAYER = re.compile(r"layers\.(\d+)$")
MOST = 3  # layers that are named as losing most


@dataclass(frozen=True)
class Finding:
    """All sites in order; the first that diverges, its ops, what explains it, and what is seen."""

    ulp: float  # the distance from 1 to the next number of the coarser type
    rows: list[Row]
    first: Row | None
    ops: list[Op]
    causes: list[str]
    signs: list[str]


def as_json(
    llm: LLM, arguments: argparse.Namespace, tokens: int, found: Finding, all_sites: Sequence[Site]
) -> dict[str, Any]:
    """Keys as `docs/diff.md` lists them; an error that is not finite is null."""
    compared = {row.site.ours for row in found.rows}
    first = found.first
    return {
        "weights": str(arguments.weights or "demo"),
        "against": arguments.against,
        "quantize": arguments.quantize,
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "tokens": tokens,
        "tolerance_ulps": arguments.tolerance,
        "ulp": found.ulp,
        "agrees": first is None,
        "first_divergence": first.site.ours if first else None,
        "first_divergence_part": (first.site.part or None) if first else None,
        "lose_most": _lose_most(found.rows, arguments.tolerance),
        "causes": found.causes,
        "signs": found.signs,
        "ops": [
            {"op": op.name, "ours": _error(op.ours), "theirs": _error(op.theirs), "off": op.off(arguments.tolerance)}
            for op in found.ops
        ],
        "modules": [_row(row, arguments.tolerance) for row in found.rows],
        "not_compared": [site.ours for site in all_sites if site.ours not in compared],
    }


def _lose_most(rows: Sequence[Row], tolerance: float) -> list[dict[str, Any]]:
    """The layers with the largest own error of all their values, each with the innermost module of the largest; none
    where less than two layers diverge."""
    own = {
        row.site.ours: row.forced.relative for row in rows if not row.site.part and math.isfinite(row.forced.relative)
    }
    layers = [row.site.ours for row in rows if LAYER.match(row.site.ours) and row.diverges(tolerance)]
    worst = sorted((name for name in layers if name in own), key=lambda name: -own[name])[:MOST]
    found = []
    for layer in worst if len(worst) > 1 else ():
        inside = [name for name in own if name.startswith(f"{layer}.")]
        inside = [name for name in inside if not any(other.startswith(f"{name}.") for other in inside)]
        found.append({"layer": layer, "relative": own[layer], "module": max(inside, key=own.__getitem__, default=None)})
    return found


def _error(error: Error | None) -> dict[str, float | None] | None:
    if error is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(error).items()}


def _row(row: Row, tolerance: float) -> dict[str, Any]:
    return {
        "module": row.site.ours,
        "part": row.site.part or None,
        "reference": row.site.theirs or None,
        "own_ulps": _error(row.forced),
        "running_ulps": _error(row.free),
        "route_flips": row.flips,
        "unexplained_flips": row.unexplained,
        "running_route_flips": row.free_flips,
        "diverges": row.diverges(tolerance),
    }


def lines(report: dict[str, Any], every: bool, colour: bool) -> Iterator[str]:
    """The report to be read."""
    quantised = f" as {report['quantize']}" if report["quantize"] else ""
    yield printable(
        f"{report['weights']}{quantised} against {report['against']}, {report['tokens']} tokens, {report['dtype']}"
    )
    yield f"{'':36}{'own error: ulps':^28}{'error so far: ulps':^28}"
    yield f"{'module':34}" + 2 * f"{'largest':>10}{'mean':>9}{'of all':>9}"
    for row in report["modules"]:
        flips = row["route_flips"] or row["running_route_flips"]
        if every or flips or row["diverges"] or LAYER.match(row["module"]) or "." not in row["module"]:
            name = row["module"] + (f"[{row['part']}]" if row["part"] else "")
            text = f"{printable(name):34}{_pair(row['own_ulps'])}{_pair(row['running_ulps'])}{_flips(row)}"
            yield f"\x1b[31m{text}\x1b[0m" if colour and row["diverges"] else text
    if report["not_compared"]:
        kinds = sorted({re.sub(r"\.\d+\.", ".N.", name) for name in report["not_compared"]})
        yield f"not compared by themselves, but within what holds them: {', '.join(kinds)}"
    if report["agrees"]:
        yield f"no module diverges: every own error is within {report['tolerance_ulps']:g} ulps"
        share = report["tolerance_ulps"] * report["ulp"]
        if share > COARSE:
            yield f"in {report['dtype']} that is {share:.0%} of a row's size: compare in float32 to be sure"
        return
    part = f" ({report['first_divergence_part']})" if report["first_divergence_part"] else ""
    yield printable(f"first divergence: {report['first_divergence']}{part}")
    if report["lose_most"]:
        said = (f"{each['layer']} {each['relative']:.1e}, {each['module']}" for each in report["lose_most"])
        yield printable(f"layers that lose most, of all, and where: {'; '.join(said)}")
    for op in report["ops"]:
        off = {None: "", "both": "  <- both are off the formula"}.get(op["off"], f"  <- {op['off']} is off the formula")
        yield f"  {op['op']:30} ours {_pair(op['ours'])} theirs {_pair(op['theirs'])}{off}"
    for index, text in enumerate(report["causes"]):
        yield f"  {'or' if index else 'cause'}: {printable(text)}"
    for text in report["signs"]:
        yield f"  sign:  {text}"


def _pair(error: dict[str, float | None] | None) -> str:
    if error is None:
        return f"{'':28}"
    relative = "" if error["relative"] is None else f"{error['relative']:.1e}"
    return f"{_number(error['max']):>10}{_number(error['mean']):>9}{relative:>9}"


def _number(value: float | None) -> str:
    if value is None:
        return "inf/nan"
    return f"{value:.2f}" if value < 1000 else f"{value:.1e}"


def _flips(row: dict[str, Any]) -> str:
    if not row["route_flips"] and not row["running_route_flips"]:
        return ""
    return f"   {row['route_flips']} tokens to other experts, {row['running_route_flips']} so far"


@quiet()
def draw(path: Path, report: dict[str, Any]) -> None:
    """Errors over depth, of attentions, ffns and whole layers: each module's own, and what has come together."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(yscale="log")
    kinds = {"attention": r"layers\.(\d+)\.attention$", "ffn": r"layers\.(\d+)\.ffn$", "layer": LAYER.pattern}
    for number, (kind, pattern) in enumerate(kinds.items()):
        rows = [(int(match[1]), row) for row in report["modules"] if (match := re.match(pattern, row["module"]))]
        for key, style, label in (("own_ulps", "--", "own"), ("running_ulps", "-", "so far")):
            points = [(i, row[key]["relative"]) for i, row in rows if row[key] and row[key]["relative"]]
            if points:
                look: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "linewidth": 2}
                axes.plot(*zip(*points, strict=True), style, label=f"{kind}, {label}", **look)
    layers = max((int(m[1]) for row in report["modules"] if (m := LAYER.match(row["module"]))), default=0)
    axes.set_xticks(range(0, layers + 1, max(1, layers // 12)))
    axes.set(xlabel="layer", ylabel="error, as a share of the reference's output")
    quantised = f" as {report['quantize']}" if report["quantize"] else ""
    names = f"{Path(report['weights']).name}{quantised} against {Path(report['against']).name}"
    axes.set_title(f"{plain(names)}, {report['tokens']} tokens")
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    save(figure, path)
