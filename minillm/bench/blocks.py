"""A picture of who has which share of the cache, step by step: what `bench throughput --plot` draws of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minillm.engine.batching.engine import Engine
from minillm.engine.batching.request import GONE
from minillm.engine.completion import Completion
from minillm.report.picture import COLOURS, quiet, save


class Watch:
    """Counts the blocks of each request after each step, and those that nobody uses but whose contents are kept."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.group = None if None in engine.store.groups else next(iter(engine.store.groups))
        self.held: list[dict[int, int]] = []  # by the request's number
        self.kept: list[int] = []

    def look(self) -> None:
        """After a step."""
        running = self.engine.scheduler.running
        held = {each.number: [block for block in each.tables.get(self.group, ()) if block != GONE] for each in running}
        self.held.append({number: len(blocks) for number, blocks in held.items()})
        self.kept.append(len(self.engine.store.groups[self.group].kept))


@quiet()
def draw(path: Path, watch: Watch, rows: list[Completion], title: str) -> None:
    """A PNG: blocks over steps, a colour for each request, those that are kept for others on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes: Any = figure.subplots()
    steps = range(len(watch.held))
    layers = [[held.get(number, 0) for held in watch.held] for number in range(len(rows))]
    colours = [COLOURS[number % (len(COLOURS) - 1)] for number in range(len(rows))]
    axes.stackplot(steps, *layers, watch.kept, colors=[*colours, "#CCCCCC"], edgecolor="white", linewidth=0.3)
    axes.axhline(watch.engine.store.groups[watch.group].count, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="steps", ylabel="blocks of 16 tokens", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
