"""What all pictures share: colours that everyone can tell apart, and a PNG file that is complete or not there."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.guard.screen import printable
from minillm.guard.writing import complete
from minillm.report import output

# Tell apart without colours too (Okabe and Ito's palette, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
SMOOTH = 20  # steps that a smoothed line looks back, about
SEQUENTIAL, DIVERGING = "cividis", "PuOr"  # colour maps of Matplotlib that read alike with any colour vision


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Matplotlib keeps to itself meanwhile what it thinks of fonts, names and room."""
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def check(path: Path) -> None:
    """Raises ValueError before anything is measured, where the picture could not be drawn."""
    try:
        with quiet():  # of a home where it can keep nothing, say
            import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install -e '.[plot]' in the clone") from None
    output.check("--plot", path, "a picture", ".png")


def save(figure: Any, path: Path) -> None:
    """Write a Matplotlib figure as PNG."""
    with complete(path) as file:
        figure.savefig(file, format="png", dpi=150)


def plain(text: str) -> str:
    """A text for a picture: no control characters, and no formula between dollars."""
    return printable(text).replace("$", r"\$")


def smoothed(values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The running mean, of which each value is a share."""
    found: list[tuple[int, float]] = []
    for step, value in values:
        share = max(1 / SMOOTH, 1 / (len(found) + 1))
        found.append((step, value if not found else found[-1][1] + share * (value - found[-1][1])))
    return found


@quiet()
def curves(path: Path, title: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Losses over steps by the name of each line, the first of them thin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", title=plain(title))
    for (name, values), number in zip(lines.items(), (5, 0, 1), strict=False):
        width = 0.8 if name == "loss" else 2.0
        axes.plot(*zip(*values, strict=True), color=COLOURS[number], linewidth=width, label=name)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
