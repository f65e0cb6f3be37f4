"""The picture of `minillm.routes`: layers by experts, what a comparison changed, the pairs of a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.report.picture import DIVERGING, SEQUENTIAL, plain, quiet, save
from minillm.routes.measure import MIN_EXPECTED

NUMBERED = 16  # experts up to which each cell says its number
TICKS = 16
CAP = 4.0  # of the mean load: one that is far busier must not make all others look alike


@quiet()
def draw(path: Path, report: dict[str, Any], layer: int | None, counts: Tensor | None) -> None:
    """A PNG; `counts` are the pairs of `layer`, as `measure.together` has them."""
    from matplotlib.figure import Figure

    layers, drift = report["layers"], report["drift"]
    busiest = max(max(row) for row in _load(layers))
    grids = [
        (_load(layers), "load of an expert over the mean of its layer", SEQUENTIAL, (0.0, min(busiest, CAP)), "{:.2f}")
    ]
    if drift:
        change = [[100 * each for each in row["load_change"]] for row in drift["layers"]]
        largest = max(max(map(abs, row)) for row in change) or 1.0
        title = f"change of the share of picks against {plain(drift['against'])}, in points of a hundred"
        grids.append((change, title, DIVERGING, (-largest, largest), "{:+.2f}"))
    heights = [1.2 + min(max(0.24 * len(layers), 1.0), 9.0)] * len(grids) + ([6.0] if counts is not None else [])
    figure = Figure(figsize=(11, sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (rows, title, colours, limits, form) in zip(panels, grids, strict=False):
        _grid(axes, rows, title, colours, limits, form)
        _ticks(axes.set_yticks, [str(each["layer"]) for each in layers], 24)
        axes.set_ylabel("layer")
    if counts is not None:
        title = f"layer {layer}: how often two experts go together, over what independence would give"
        _pairs(panels[-1], counts, report["tokens"], title)
    figure.suptitle(f"{plain(Path(report['weights']).name)}, {report['tokens']:,} tokens")
    save(figure, path)


def _load(layers: list[dict[str, Any]]) -> list[list[float]]:
    return [[share * each["num_experts"] for share in each["load"]] for each in layers]


def _grid(axes: Any, rows: list[list[float]], title: str, colours: str, limits: tuple[float, float], form: str) -> None:
    width = max(map(len, rows))
    padded = [row + [float("nan")] * (width - len(row)) for row in rows]
    image = axes.imshow(padded, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    above = max(map(max, rows)) > limits[1]
    axes.figure.colorbar(image, ax=axes, pad=0.01, extend="max" if above else "neither")
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("expert")
    _ticks(axes.set_xticks, [str(each) for each in range(width)], TICKS)
    for y, row in enumerate(rows) if width <= NUMBERED else ():
        for x, value in enumerate(row):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            axes.text(x, y, form.format(value), ha="center", va="center", fontsize="small", color=ink)


def _pairs(axes: Any, counts: Tensor, tokens: int, title: str) -> None:
    load = counts.diagonal().double()
    expected = torch.outer(load, load) / tokens
    lift = torch.where(expected >= MIN_EXPECTED, counts / expected, torch.nan)
    lift.fill_diagonal_(torch.nan)  # never of itself
    image = axes.imshow(lift.tolist(), cmap=DIVERGING, vmin=0, vmax=2, interpolation="nearest")
    axes.figure.colorbar(image, cax=axes.inset_axes((1.02, 0, 0.03, 1)), extend="max")
    axes.set_title(title, fontsize="medium")
    axes.set(xlabel="expert", ylabel="expert")
    for put in (axes.set_xticks, axes.set_yticks):
        _ticks(put, [str(each) for each in range(len(lift))], TICKS)


def _ticks(put: Any, labels: list[str], most: int) -> None:
    """As many labels as can be read."""
    step = -(-len(labels) // most)
    put(range(0, len(labels), step), labels[::step])
