"""A picture of a sweep: decode and prefill side by side, over the swept size as lines, or as bars where none is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.roofline import COLOURS, MARKERS, save

Row = Mapping[str, Any]

SIZES = ("context", "prompt", "batch")  # what lines can run over; the first that varies is taken
OTHERS = ("dtype", "quantize")
PANELS = {"decode_tok_s": "decode", "prefill_tok_s": "prefill"}


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
    figure.suptitle(f"{rows[0]['shape']} on {report['device']}, {report['threads']} threads{_fixed(rows[0], varying)}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    save(figure, path)


def _fixed(row: Row, varying: Sequence[str]) -> str:
    """What is the same for all rows."""
    fixed = [key for key in (*SIZES, *OTHERS) if key not in varying and row[key] != "none"]
    return "\n" + ", ".join(f"{key} {row[key]}" for key in fixed) if fixed else ""


def _lines(axes: Any, rows: Sequence[Row], figure_of: str, size: str, varying: Sequence[str]) -> None:
    ticks = sorted({row[size] for row in rows})
    for number, name in enumerate(_series(rows, varying)):
        points = sorted((row[size], row[figure_of]) for row in rows if _name(row, varying) == name)
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        style = "-" if number < len(COLOURS) else "--"
        axes.plot(*zip(*points, strict=True), style, color=colour, marker=marker, linewidth=2, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel({"context": "positions in the cache", "prompt": "tokens of the prompt"}.get(size, "rows"))


def _bars(axes: Any, rows: Sequence[Row], figure_of: str, varying: Sequence[str]) -> None:
    """A group for each dtype and quantisation, a bar for each engine that has been run so."""
    groups = list(dict.fromkeys(tuple(row[key] for key in varying) for row in rows))
    engines = _series(rows, [])
    width = 0.8 / len(engines)
    for number, engine in enumerate(engines):
        own = [row for row in rows if row["engine"] == engine]
        places = [
            groups.index(tuple(row[key] for key in varying)) + (number - (len(engines) - 1) / 2) * width for row in own
        ]
        heights = [row[figure_of] for row in own]
        hatch = ("", "//", "..", "xx")[number % 4]
        bars = axes.bar(
            places, heights, width * 0.95, color=COLOURS[number], label=engine, hatch=hatch, edgecolor="white"
        )
        axes.bar_label(bars, fmt="{:.1f}", fontsize="small", padding=2)
    labels = [" ".join(each for each in group if each != "none") for group in groups]
    axes.set_xticks(range(len(groups)), labels)


def _series(rows: Sequence[Row], varying: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(_name(row, varying) for row in rows))


def _name(row: Row, varying: Sequence[str]) -> str:
    """The engine, and of what else varies the part that this row has."""
    words = {"batch": f"batch {row['batch']}", "prompt": f"prompt {row['prompt']}"}
    parts = [str(words.get(key, row[key])) for key in varying]
    return ", ".join([row["engine"], *(part for part in parts if part != "none")])
