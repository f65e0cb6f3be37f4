"""The roofline (Williams et al., 2009): what a machine could do at best, and where each op stands under it.

An op of B bytes and F operations takes at least B / bandwidth and F / peak. Over the intensity F / B that is a line
which rises with the bandwidth up to the peak. Distances to it are what is lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minillm.report.picture import COLOURS, MARKERS, quiet, save


@quiet()
def draw(path: Path, rows: list[dict[str, Any]], bandwidth: float, peak: float, title: str) -> None:
    """A PNG with a point per row: its `flops` over its `bytes`, and over its `seconds`. `bandwidth` in bytes and `peak`
    in operations per second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    intensities = [row["flops"] / row["bytes"] for row in rows]
    left, right = min(intensities) / 2, max([*intensities, peak / bandwidth]) * 2
    axes.plot([left, peak / bandwidth, right], [left * bandwidth / 1e12, peak / 1e12, peak / 1e12], color="0.4")
    middle = (left * peak / bandwidth) ** 0.5
    axes.text(middle * 1.6, middle * bandwidth / 1e12, f"{bandwidth / 1e9:.0f} GB/s", va="top", color="0.3")
    axes.text(right / 1.2, peak * 1.1 / 1e12, f"{peak / 1e12:.3g} TFLOP/s", ha="right", color="0.3")
    for number, (row, intensity) in enumerate(zip(rows, intensities, strict=True)):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        label, rate = f"{row['op']}, {row['shape']}", row["flops"] / row["seconds"] / 1e12
        axes.scatter(intensity, rate, 60, c=colour, marker=marker, label=label)
    axes.set(xlabel="operations per byte", ylabel="TFLOP/s", title=title)
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", fontsize="small")
    save(figure, path)
