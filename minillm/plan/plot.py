"""The cache over the context, next to the weights: where a model's memory goes as a sequence grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.plan.report import called
from minillm.report import picture
from minillm.report.picture import COLOURS, plain, quiet, save

MAX_LINES = len(COLOURS)
GAP = 0.05  # between names, as a share of the picture's height
COLUMNS = 4  # of names side by side
UNITS = ((1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))


def check(path: Path, count: int = 1) -> None:
    """Raises ValueError before anything is computed, where the picture could not be drawn or read."""
    picture.check(path)
    if count > MAX_LINES:
        raise ValueError(f"--plot: {count} checkpoints, a picture tells {MAX_LINES} apart; draw fewer")


@quiet()
def draw(path: Path, reports: Sequence[Mapping[str, Any]]) -> None:
    """A PNG with a line for the cache of each report's checkpoint, up to the model's context, and a dashed one at the
    bytes of its weights."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    curves = [{int(n): size for n, size in report["kv_bytes_by_context"].items()} for report in reports]
    first, last = min(map(min, curves)), max(map(max, curves))
    low = min(min(curve.values()) for curve in curves) / 1.5
    high = max(max(report["weight_bytes"], *curve.values()) for report, curve in zip(reports, curves, strict=True)) * 2
    axes.set(xlim=(first, last), ylim=(low, high), xlabel="context, tokens", title=_title(reports))
    names = [plain(called(report)) for report in reports]
    for report, curve, colour in zip(reports, curves, COLOURS, strict=False):
        axes.plot(list(curve), list(curve.values()), color=colour, linewidth=2.2)
        axes.plot([max(curve)], [curve[max(curve)]], "o", color=colour, markersize=5)
        axes.axhline(report["weight_bytes"], color=colour, linestyle=(0, (5, 3)), linewidth=1.2)
    _name_caches(axes, names, [max(curve.items()) for curve in curves])
    _name_weights(axes, names, [report["weight_bytes"] for report in reports])
    ticks = [2**power for power in range(7, 31) if first <= 2**power <= last]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda each, _: f"{each:,.0f}" if each < 1024 else f"{each / 1024:,.0f}k")
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda each, _: _bytes(each)))
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _title(reports: Sequence[Mapping[str, Any]]) -> str:
    batch = reports[0]["batch"]
    rows = "one sequence" if batch == 1 else f"{batch:,} sequences"
    return f"cache of {rows} (solid) and weights (dashed)"


def _name_caches(axes: Any, names: Sequence[str], ends: Sequence[tuple[int, float]]) -> None:
    """To the right of the picture, moved apart where they would overlap; at its own end where a line ends early."""
    last = axes.get_xlim()[1]
    late = [index for index, (stop, _) in enumerate(ends) if stop > last / 2]
    late.sort(key=lambda index: ends[index][1])
    places = apart([_height(axes, ends[index][1]) for index in late], GAP)
    style = {"annotation_clip": False, "fontsize": 10}
    for index, (name, end) in enumerate(zip(names, ends, strict=True)):
        colour = COLOURS[index]
        if index in late:
            line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 2, "shrinkB": 0}
            at = 1.03, places[late.index(index)]
            axes.annotate(
                name, end, at, textcoords="axes fraction", va="center", color=colour, arrowprops=line, **style
            )
        else:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
            offset = {"xytext": (-4, 8), "textcoords": "offset points", "ha": "right"}
            axes.annotate(name, end, color=colour, bbox=box, **offset, **style)


def _name_weights(axes: Any, names: Sequence[str], weights: Sequence[float]) -> None:
    """At the left, on the line; of lines that lie close together side by side on the highest of them."""
    close: list[list[int]] = []
    for index in sorted(range(len(names)), key=weights.__getitem__):
        if close and _height(axes, weights[index]) - _height(axes, weights[close[-1][-1]]) < GAP:
            close[-1].append(index)
        else:
            close.append([index])
    for together in close:
        height = _height(axes, weights[together[-1]])
        for place, index in enumerate(together):
            row, column = divmod(place, COLUMNS)
            axes.annotate(
                f"{names[index]}: {_bytes(float(f'{weights[index]:.3g}'))}",
                (0.01 + column / COLUMNS, height),
                (0, 2 + 12 * row),
                xycoords="axes fraction",
                textcoords="offset points",
                va="bottom",
                color=COLOURS[index],
                fontsize=9,
            )


def _height(axes: Any, value: float) -> float:
    """Where a number of bytes lies, as a share of the picture's height."""
    low, high = map(math.log, axes.get_ylim())
    return (math.log(value) - low) / (high - low)


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved as little as it takes for `gap` between each two: runs that overlap share their middle."""
    runs: list[tuple[float, int]] = []  # middle, and how many
    for place in wanted:
        middle, count = place, 1
        while runs and middle - runs[-1][0] < gap * (count + runs[-1][1]) / 2:
            other, more = runs.pop()
            middle, count = (middle * count + other * more) / (count + more), count + more
        runs.append((middle, count))
    return [middle + gap * (index - (count - 1) / 2) for middle, count in runs for index in range(count)]


def _bytes(value: float) -> str:
    unit, word = next(each for each in reversed(UNITS) if value >= each[0] or each is UNITS[0])
    return f"{value / unit:g} {word}"
