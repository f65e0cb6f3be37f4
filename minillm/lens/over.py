"""What a token looks at in a picture, drawn over the picture: as PNG, and as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from minillm.lens.seen import Shown, heat
from minillm.lens.text import SHADES, name_of
from minillm.report.picture import plain, quiet, save

Report = Mapping[str, Any]
Panel = tuple[str, Tensor]  # a title, and weights [R, C]

MOST_PANELS = 48
WIDTH = 100  # columns of text


def panels(attention: Sequence[Tensor], shown: Shown, token: int, layer: int | None, head: int | None) -> list[Panel]:
    """The mean of all heads of each layer; of one layer each head, or one."""
    found = []
    for index in range(len(attention)) if layer is None else [layer]:
        if not len(attention[index]):  # recurrent
            continue
        weights = heat(attention[index], shown, token)
        if layer is None:
            found.append((f"layer {index}", weights.mean(0)))
        else:
            chosen = range(len(weights)) if head is None else [head]
            found += [(f"layer {index}, head {each}", weights[each]) for each in chosen]
    return found


def title(report: Report, token: int) -> str:
    known = [name_of(report, each) for each in report["tokens"]]
    return f"What {known[token]!r} at position {token} looks at"


@quiet()
def draw(
    path: Path, report: Report, shown: Sequence[Shown], attention: Sequence[Tensor], token: int,
    layer: int | None = None, head: int | None = None,
) -> None:  # fmt: skip
    """The pictures, each with the weights over it: bright is much, of the largest cell of all panels. Raises ValueError
    for too many panels."""
    from matplotlib.figure import Figure

    found = [(one, each) for one in shown for each in [None, *panels(attention, one, token, layer, head)]]
    if len(found) > MOST_PANELS:
        raise ValueError(f"a picture has room for {MOST_PANELS} panels, this would be {len(found)}; give --layer")
    per_picture = len(found) // len(shown)
    columns = min(per_picture, max(6, math.ceil(math.sqrt(len(found)))))
    rows = -(-per_picture // columns) * len(shown)
    high = 2.2 * min(max(one.levels.shape[0] / one.levels.shape[1] for one in shown), 2.0) + 0.35
    figure = Figure(layout="constrained", figsize=(max(2.2 * columns + 1, 6), high * rows + 0.6))
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flatten():
        each.set_axis_off()
    most = max((float(panel[1].max()) for _, panel in found if panel), default=1.0) or 1.0
    for number, (one, panel) in enumerate(found):
        row, column = divmod(number % per_picture, columns)
        place, (height, width) = axes[number // per_picture * (rows // len(shown)) + row][column], one.levels.shape[:2]
        if panel is None:
            place.imshow(one.levels)
            _grid(place, one)
            place.set_title(plain(Path(one.name).name[:24]), fontsize=9)
            continue
        grey = one.levels.mean(-1)
        place.imshow(grey / 255 * 0.6, cmap="gray", vmin=0, vmax=1)
        weights = panel[1].cpu().numpy()
        image = place.imshow(
            weights, cmap="inferno", vmin=0, vmax=most, alpha=0.25 + 0.65 * np.sqrt(weights / most),
            extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest",
        )  # fmt: skip
        place.set_title(f"{panel[0]}: {100 * float(panel[1].sum()):.1f} %", fontsize=9)
    figure.colorbar(image, ax=axes, label="weight of a cell", shrink=0.6)
    figure.suptitle(plain(title(report, token)) + " (how much of its weight lies in the picture)")
    save(figure, path)


def _grid(place: Any, one: Shown) -> None:
    """What each token of the picture stands for."""
    (height, width), (rows, columns) = one.levels.shape[:2], one.grid
    for row in range(1, rows):
        place.axhline(row * height / rows - 0.5, color="white", linewidth=0.4, alpha=0.6)
    for column in range(1, columns):
        place.axvline(column * width / columns - 0.5, color="white", linewidth=0.4, alpha=0.6)


def lines(
    report: Report, shown: Sequence[Shown], attention: Sequence[Tensor], token: int,
    layer: int | None = None, head: int | None = None,
) -> Iterator[str]:  # fmt: skip
    """The same in characters: each panel by itself, shades by its own largest cell."""
    yield title(report, token)
    for one in shown:
        yield f"{Path(one.name).name}: {one.grid[1]} x {one.grid[0]} tokens"
        for name, weights in panels(attention, one, token, layer, head):
            largest, step = float(weights.max()), max(-(-one.grid[1] // WIDTH), 1)
            yield f"{name}: {100 * float(weights.sum()):.1f} % of its weight, {100 * largest:.2f} % in the largest cell"
            for row in (weights / (largest or 1.0))[::step, ::step].tolist():
                yield "  " + "".join(SHADES[min(int(each * len(SHADES)), len(SHADES) - 1)] for each in row)
