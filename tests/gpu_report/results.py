"""What a run has found, in its folder after each measurement: `results.jsonl`, a row each line as it came; `report.md`,
written anew each time; `log.txt`, whatever the steps print. Copying the folder at any moment gives all there is."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from tests.gpu_report.steps import STEPS, Step

Row = dict[str, Any]  # step, item, ok (None: measured or not run, nothing to be wrong), values, message
LONGEST = 160  # characters of a message in a line of the terminal or the table; results.jsonl has all
SHOWN = 25  # wrong ones of a step that the terminal shows


class Results:
    """The folder. A later row of the same step and item takes the place of an earlier one in the table."""

    def __init__(self, folder: Path, title: str):
        self.folder, self.title = folder, title
        self.rows: dict[tuple[str, str], Row] = {}
        self.summaries: dict[str, str] = {}
        self.tuned: dict[str, str] = {}
        self.lock = threading.Lock()  # steps with several processes
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "results.jsonl").exists():
            raise ValueError(f"{folder} has the results of another run; give --out another folder")
        self.write()

    def add(self, row: Row) -> None:
        with self.lock:
            fresh = (row["step"], row["item"]) not in self.rows
            self.rows[row["step"], row["item"]] = row
            with (self.folder / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.write()
            wrong = sum(each["ok"] is False for each in self.of(row["step"]))
        if row["ok"] is False and fresh and wrong <= SHOWN:
            print(f"    wrong: {row['item']}: {one_line(row['message'])}", flush=True)

    def of(self, step: str) -> list[Row]:
        return [row for row in self.rows.values() if row["step"] == step]

    def summarise(self, step: Step, seconds: float, cut: str | None) -> None:
        """The line of a step that has ended."""
        rows = [row for row in self.of(step.name) if row["item"] != "(cut)"]
        counts = Counter(map(word, rows))
        found = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word]) or "nothing"
        self.summaries[step.name] = f"{step.name}: {found}; {seconds:.0f} s" + (f"; {cut}" if cut else "")
        print(self.summaries[step.name], flush=True)
        with self.lock:
            self.write()

    def keep_tuning(self, cache: Path) -> None:
        """What has been tuned so far lies beside the results, and in the report."""
        if (file := cache / "minillm/tuning/kernels.json").is_file():
            shutil.copyfile(file, self.folder / "tuning.json")
            for chosen in json.loads(file.read_text(encoding="utf-8")).values():
                self.tuned |= chosen
            self.write()

    def write(self) -> None:
        temporary = self.folder / "report.md.new"
        temporary.write_text(self.markdown(), encoding="utf-8")
        os.replace(temporary, self.folder / "report.md")

    def markdown(self) -> str:
        parts = [f"# {self.title}", "\n".join(f"- {line}" for line in self.summaries.values()) or "Nothing yet."]
        if wrong := [row for row in self.rows.values() if row["ok"] is False]:
            lines = [f"- {row['step']}, {row['item']}: {one_line(row['message'])}" for row in wrong]
            parts += ["## Wrong", "\n".join(lines)]
        for step in STEPS:
            if rows := self.of(step.name):
                parts += [f"## {step.title[0].upper()}{step.title[1:]}", tables(rows)]
        if self.tuned:
            lines = [f"| {key} | {name} |" for key, name in sorted(self.tuned.items())]
            parts += ["## Configurations chosen", "\n".join(["| kernel and key |  |", "| --- | --- |", *lines])]
        return "\n\n".join(parts) + "\n"


WORDS = ("right", "wrong", "measured", "not run")


def word(row: Row) -> str:
    """What a row has come to."""
    if row["ok"] is None:
        return "not run" if row["message"].startswith("not run") else "measured"
    return "right" if row["ok"] else "wrong"


def tables(rows: list[Row]) -> str:
    """One for each kind of rows: those with the same values."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault(tuple(row["values"]), []).append(row)
    return "\n\n".join(table(list(names), each) for names, each in kinds.items())


def table(names: list[str], rows: list[Row]) -> str:
    heads = ["", *names, "", ""] if names else ["", "", ""]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        cells = [row["item"], *(shown(row["values"].get(name)) for name in names)]
        cells += ["" if row["ok"] is None else word(row), one_line(row["message"])]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def one_line(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
