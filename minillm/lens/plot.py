"""What `lens` shows, as pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from minillm.lens.text import level_name, name_of, names
from minillm.report.picture import COLOURS, MARKERS, SEQUENTIAL, quiet, save

Report = Mapping[str, Any]

MOST_CELLS = 32  # positions or layers of a grid whose cells hold readable words
MOST_HEADS = 64  # maps in one picture
DARK = 0.55  # of a colour map: below it text is white


@quiet()
def draw(
    path: Path, report: Report, show: str, maps: Sequence[Tensor], layer: int | None = None, head: int | None = None
) -> None:
    """One part of a report as PNG; of attention all heads, those of one layer, or one. Raises ValueError where labels
    would be too small to read."""
    from matplotlib.figure import Figure

    drawn: dict[str, Callable[[Any], None]] = {
        "distribution": lambda figure: _distribution(figure, report),
        "lens": lambda figure: _lens(figure, report),
        "attention": lambda figure: _attention(figure, report, maps, layer, head),
        "norms": lambda figure: _norms(figure, report),
        "sampling": lambda figure: _sampling(figure, report),
    }
    figure = Figure(layout="constrained")
    drawn[show](figure)
    save(figure, path)


def _words(report: Report, tokens: Sequence[int]) -> list[str]:
    """Tokens as labels: short, and without what Matplotlib takes for mathematics."""
    found = [name_of(report, token) for token in tokens]
    return [(word if len(word) <= 12 else f"{word[:11]}…").replace("$", r"\$") for word in found]


def _few(report: Report) -> int:
    """How many positions the grid has. Raises ValueError for too many."""
    count = len(report["tokens"])
    if count > MOST_CELLS:
        raise ValueError(f"a picture has room for {MOST_CELLS} positions, the prompt has {count}; use --html or --json")
    return count


def _lens(figure: Any, report: Report) -> None:
    """Layers over positions: the likeliest token in each cell, in the colour of its chance."""
    found, count = report["lens"], _few(report)
    levels = len(found["ids"])
    figure.set_size_inches(max(1.6 + 0.78 * count, 6), 1.6 + 0.34 * levels)
    axes = figure.subplots()
    image = axes.imshow(found["probability"], origin="lower", aspect="auto", vmin=0, vmax=1, cmap=SEQUENTIAL)
    for level, tokens in enumerate(found["ids"]):
        for at, word in enumerate(_words(report, tokens)):
            light = found["probability"][level][at] < DARK
            axes.text(at, level, word, ha="center", va="center", fontsize=7.5, color="white" if light else "black")
    axes.set_xticks(range(count), _words(report, report["tokens"]), rotation=45, ha="right")
    axes.set_yticks(range(levels), [level_name(level) for level in range(levels)])
    axes.set(title="What each layer would say comes next", xlabel="after this token of the prompt")
    figure.colorbar(image, ax=axes, label="probability")


def _distribution(figure: Any, report: Report) -> None:
    """Above the surprisal of each token and the entropy it was expected with; below the chances of the last one."""
    count = _few(report)
    figure.set_size_inches(max(0.45 * count + 2, 8), 7)
    above, below = figure.subplots(2)
    labels = _words(report, report["tokens"])
    above.bar(range(1, count), report["following"]["nats"], color=COLOURS[0], label="surprisal of the token")
    expected = report["distribution"]["entropy"][:-1]
    above.plot(range(1, count), expected, MARKERS[0], color=COLOURS[1], label="entropy before it")
    above.set_xticks(range(count), labels, rotation=45, ha="right")
    above.set(ylabel="nats", title="How surprising each token is")
    above.legend(frameon=False)
    chances = report["distribution"]["probabilities"][-1]
    words = _words(report, report["distribution"]["ids"][-1])
    bars = below.barh(range(len(words)), chances, color=COLOURS[0])
    below.bar_label(bars, fmt="{:.3f}", padding=3)
    below.set_yticks(range(len(words)), words)
    below.invert_yaxis()
    below.set(xlabel="probability", title="What comes behind the last one", xlim=(0, max(chances) * 1.15))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)


def _attention(figure: Any, report: Report, maps: Sequence[Tensor], layer: int | None, head: int | None) -> None:
    """A map for each head: queries down, keys across."""
    layers = range(len(maps)) if layer is None else [layer]
    chosen = [(i, j) for i in layers for j in (range(len(maps[i])) if head is None else [head])]
    if len(chosen) > MOST_HEADS:
        raise ValueError(f"a picture has room for {MOST_HEADS} heads, this would be {len(chosen)}; give --layer")
    if len(chosen) == 1:
        count, (i, j) = _few(report), chosen[0]
        figure.set_size_inches(2.5 + 0.3 * count, 1.8 + 0.3 * count)
        axes = figure.subplots()
        image = _map(axes, maps[i][j], f"layer {i}, head {j}")
        labels = _words(report, report["tokens"])
        axes.set_xticks(range(count), labels, rotation=90)
        axes.set_yticks(range(count), labels)
        axes.set(xlabel="looks at", ylabel="token")
        figure.colorbar(image, ax=axes, label="weight")
        return
    columns = max(map(len, maps)) if layer is None else math.ceil(math.sqrt(len(chosen)))
    rows = math.ceil(len(chosen) / columns)
    figure.set_size_inches(max(1.5 * columns + 1, 6), 1.65 * rows + 0.6)  # no narrower than its title
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (i, j) in zip(panels, chosen, strict=False):
        image = _map(axes, maps[i][j], f"layer {i}, head {j}")
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_frame_on(axes in panels[: len(chosen)])
    figure.suptitle("Attention: each token (down) looks at those before it (across)")
    figure.colorbar(image, ax=list(panels), label="weight", shrink=0.6)


def _map(axes: Any, weights: Tensor, title: str) -> Any:
    axes.set_title(title, fontsize=9)
    return axes.imshow(weights.float().cpu().numpy(), vmin=0, vmax=1, cmap=SEQUENTIAL, interpolation="nearest")


def _norms(figure: Any, report: Report) -> None:
    """Medians over the positions behind the first, which is often far larger and has a line of its own."""
    from matplotlib import ticker

    figure.set_size_inches(9, 4.5)
    axes = figure.subplots()
    labels = {"residual": "residual stream", "attention": "attention adds", "ffn": "feed-forward adds"}
    levels = len(report["norms"]["residual"])
    for number, (part, label) in enumerate(labels.items()):
        found = report["norms"][part]
        behind = range(levels - len(found), levels)
        look = {"color": COLOURS[number], "linewidth": 2}
        axes.plot(behind, [row[0] for row in found], f":{MARKERS[number]}", label=f"{label}, first token", **look)
        if len(report["tokens"]) > 1:
            middle = [statistics.median(row[1:]) for row in found]
            axes.plot(behind, middle, f"-{MARKERS[number]}", label=f"{label}, median of others", **look)
    step = math.ceil(levels / 16)
    axes.set_xticks(range(0, levels, step), ["emb", *range(levels - 1)][::step])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.set(xlabel="behind layer", ylabel="Euclidean norm", title="The residual stream and what is added to it")
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)


def _sampling(figure: Any, report: Report) -> None:
    """The likeliest tokens' chances, a panel for each cut."""
    found = report["sampling"]
    words, steps = _words(report, found["ids"]), found["steps"]
    figure.set_size_inches(2.2 + 2.3 * len(steps), 1.4 + 0.26 * len(words))
    panels = figure.subplots(1, len(steps), sharey=True, sharex=True, squeeze=False)[0]
    for number, (axes, step) in enumerate(zip(panels, steps, strict=True)):
        axes.barh(range(len(words)), step["probabilities"], color=COLOURS[number % len(COLOURS)])
        axes.set_title(f"{step['name']}\n{step['kept']} kept, {100 * step['mass']:.1f} % of the mass", fontsize=9)
        axes.set_xlabel("probability")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(words)), words)
    panels[0].invert_yaxis()
    figure.suptitle(f"What may come after {names(report)[-1]!r}".replace("$", r"\$"))
