"""What is left of a run to be looked at: `log.jsonl` with a line for each step, and the same for TensorBoard where that
is asked for; `loss.png` where Matplotlib is there, and `report.html` with its picture as lines, which need
nothing."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.guard.writing import complete
from minillm.report import page, picture
from minillm.tune.training import Taken

LOG, PICTURE, PAGE = "log.jsonl", "loss.png", "report.html"
BOARD = {"loss", "norm", "rate", "evaluated"}  # what TensorBoard gets


class Log:
    """The steps of a run. One that goes on drops the lines of steps that are taken again."""

    def __init__(self, folder: Path, done: int, tensorboard: bool = False):
        self.path = folder / LOG
        self.board = _board(folder, done) if tensorboard else None
        self.lines: list[dict[str, Any]] = []
        if done and self.path.is_file():
            kept = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines() if line]
            self.lines = [each for each in kept if each["step"] <= done]
        with complete(self.path) as file:
            file.write("".join(f"{json.dumps(each)}\n" for each in self.lines).encode())

    def add(self, taken: Taken) -> None:
        """Write a step down; what has been written stays, whatever happens to the process."""
        line = {key: value for key, value in taken._asdict().items() if value is not None and key != "best"}
        self.lines.append(
            {key: round(value, 6) if key in ("seconds", "norm") else value for key, value in line.items()}
        )
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(self.lines[-1])}\n")

        if self.board is not None:
            for key in BOARD & line.keys():
                self.board.add_scalar(key, line[key], taken.step)
            self.board.flush()

    def values(self, key: str) -> list[tuple[int, float]]:
        """The steps that have a value, and the values."""
        return [(each["step"], each[key]) for each in self.lines if key in each]


def check_board() -> None:
    """Raises ValueError before anything is loaded, where TensorBoard could not be written for."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise ValueError("--tensorboard needs tensorboard: pip install -e '.[tensorboard]' in the clone") from None


def _board(folder: Path, done: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=done + 1)


def write(folder: Path, title: str, log: Log, told: Mapping[str, Any], shown: Sequence[str]) -> None:
    """`report.html`, and `loss.png` where Matplotlib is installed."""
    curves = {
        "loss": log.values("loss"),
        "smoothed": picture.smoothed(log.values("loss")),
        "held out": log.values("evaluated"),
    }
    curves = {name: each for name, each in curves.items() if each}
    rows = "".join(f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in told.items())
    examples = "".join(f"<pre>{html.escape(each)}</pre>" for each in shown)
    body = f"<div class=scroll>{page.curves(curves)}</div><table>{rows}</table>"
    body += f"<h2>What is learnt, between ⟦ and ⟧</h2>{examples}" if shown else ""
    page.write(folder / PAGE, title, body, style="pre { white-space: pre-wrap; } svg { max-width: 100%; }")
    try:
        picture.check(folder / PICTURE)
    except ValueError:  # no Matplotlib: the page has the picture
        return
    picture.curves(folder / PICTURE, title, curves)
