"""A picture of a sweep: decode and prefill side by side, over the swept size as lines, or as bars where none is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.report.picture import COLOURS, MARKERS, plain, quiet, save

Row = Mapping[str, Any]

SIZES = ("context", "prompt", "batch")  # what lines can run over; the first that varies is taken
OTHERS = ("dtype", "quantize")
STYLES, HATCHES = ("-", "--", ":", "-."), ("", "//", "..")
PANELS = {"decode_tok_s": "decode", "prefill_tok_s": "prefill"}


@quiet()
def draw(path: Path, report: Mapping[str, Any]) -> None:
    """A PNG of a report's rows."""
    from matplotlib.figure import Figure

    rows: Sequence[Row] = report["rows"]
    varying = [key for key in (*SIZES, *OTHERS) if len({row[key] for row in rows}) > 1]
    size = next((key for key in SIZES if key in varying), None)
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (figure_of, title) in zip(panels, PANELS.items(), strict=True):
        if size:
            _lines(axes, rows, figure_of, size, [key for key in varying if key != size])
        else:
            _bars(axes, rows, figure_of, varying)
        axes.set(title=title, ylabel="tokens per second")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    title = f"{plain(rows[0]['shape'])} on {report['device']}, {report['threads']} threads{_fixed(rows[0], varying)}"
    figure.suptitle(title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    save(figure, path)


def _fixed(row: Row, varying: Sequence[str]) -> str:
    """What is the same for all rows."""
    fixed = [key for key in (*SIZES, *OTHERS) if key not in varying and row[key] != "none"]
    return "\n" + ", ".join(f"{key} {row[key]}" for key in fixed) if fixed else ""


def _lines(axes: Any, rows: Sequence[Row], figure_of: str, size: str, varying: Sequence[str]) -> None:
    """A colour for each engine, a style for each combination of what else varies."""
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    others = list(dict.fromkeys(_words(row, varying) for row in rows))
    for (number, engine), (kind, other) in itertools.product(enumerate(engines), enumerate(others)):
        own = [row for row in rows if row["engine"] == engine and _words(row, varying) == other]
        points = sorted((row[size], row[figure_of]) for row in own)
        if points:
            style = f"{STYLES[kind % len(STYLES)]}{MARKERS[kind % len(MARKERS)]}"
            label = ", ".join(filter(None, (engine, other)))
            axes.plot(*zip(*points, strict=True), style, color=COLOURS[number], linewidth=2, label=label)
    ticks = sorted({row[size] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel({"context": "positions in the cache", "prompt": "tokens of the prompt"}.get(size, "rows"))


def _bars(axes: Any, rows: Sequence[Row], figure_of: str, varying: Sequence[str]) -> None:
    """A group for each dtype and quantisation, a bar for each engine that has been run so."""
    groups = list(dict.fromkeys(_words(row, varying) for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    width = 0.8 / len(engines)
    for number, engine in enumerate(engines):
        own = [row for row in rows if row["engine"] == engine]
        shift = (number - (len(engines) - 1) / 2) * width
        places = [groups.index(_words(row, varying)) + shift for row in own]
        look = {"color": COLOURS[number], "hatch": HATCHES[number], "edgecolor": "white"}
        bars = axes.bar(places, [row[figure_of] for row in own], width * 0.95, label=engine, **look)
        axes.bar_label(bars, fmt="{:.1f}", fontsize="small", padding=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.set_axisbelow(True)


def _words(row: Row, varying: Sequence[str]) -> str:
    """What a row has of all that varies; weights that are not quantised are called by their dtype."""
    words = {"batch": f"batch {row['batch']}", "prompt": f"prompt {row['prompt']}"}
    words["quantize"] = row["dtype"] if row["quantize"] == "none" else row["quantize"]
    return ", ".join(dict.fromkeys(str(words.get(key, row[key])) for key in varying))
