"""What runs in a step's process: its measurements one after the other. What one of them raises is a row of the report,
and the next goes on; where the GPU has gone with it the process ends, and another is started for the rest.

Lines of JSON on what was stdout, {"items": [...]} first, then for each {"begin": name}, its rows and {"end": name};
whatever else is printed goes to stderr, which is the log.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GPU_GONE = 3  # exit code
LINES = 4  # first and last ones of a message that are kept

Send = Callable[[dict[str, Any]], None]
Item = tuple[str, Callable[[], None]]


class NotRun(Exception):
    """Something that this measurement needs is not here."""


@dataclass
class Run:
    """What a step is told, and where its rows go."""

    send: Send
    patch: Any  # with the `setattr` and `setitem` of pytest's monkeypatch
    rehearse: bool = False
    checkpoints: list[str] = field(default_factory=list)  # folders of those with recorded outputs
    broken: list[str] = field(default_factory=list)  # ops that have raised in an earlier step
    copy: float | None = None  # bytes per second that a copy reads and writes
    peak: float | None = None  # operations per second of a large product
    seconds: float = 600.0  # of this step
    item: str = ""

    def __post_init__(self) -> None:
        import torch

        self.deadline = time.monotonic() + self.seconds
        self.device = torch.device("cpu") if self.rehearse else torch.device("cuda", 0)
        exact = (
            {"fp32": torch.float32} if self.rehearse else {"bf16": torch.bfloat16}
        )  # the interpreter's bf16 is wrong
        self.dtypes = {**exact, "fp16": torch.float16}
        self.dtype = self.dtypes["fp16" if self.rehearse else "bf16"]  # of whole models

    def row(self, values: dict[str, Any] | None = None, ok: bool | None = None, message: str = "", **more: Any) -> None:
        """One row of the report: of this measurement, unless `item` names another."""
        found = {name: value if finite(value) else str(value) for name, value in (values or {}).items()}
        self.send({"row": {"item": self.item, "ok": ok, "values": found, "message": message, **more}})


def finite(value: Any) -> bool:
    """What JSON has a number for."""
    return not isinstance(value, float) or math.isfinite(value)


def serve(run: Run, items: list[Item], only: list[str], skip: list[str], part: int = 0, parts: int = 1) -> int:
    """Run every one of `parts` measurements from `part` on, of those whose names have one of the texts `only`."""
    wanted = [item for item in items if not only or any(text in item[0] for text in only)][part::parts]
    run.send({"items": [name for name, _ in wanted]})
    for name, call in wanted:
        if name in skip:
            continue
        run.item = name
        run.send({"begin": name})
        try:
            call()
        except NotRun as reason:
            run.row(message=f"not run: {reason}")
        except Exception as error:
            traceback.print_exc()
            run.row(ok=False, message=brief(error), raised=True)
        run.send({"end": name})
        if gone(run):
            return GPU_GONE
    return 0


def gone(run: Run) -> bool:
    """Whether an error of the GPU has left this process without it: each later call would raise the same."""
    import torch

    gc.collect()
    if run.device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    except RuntimeError:
        return True
    return False


def brief(error: BaseException) -> str:
    """The first and the last lines: compilers say what is wrong in either."""
    lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return "\n".join(lines if len(lines) <= 2 * LINES else [*lines[:LINES], "…", *lines[-LINES:]])[:2000]


class Patch:
    """As pytest's monkeypatch, for good."""

    setattr = staticmethod(setattr)

    @staticmethod
    def setitem(table: dict[Any, Any], key: Any, value: Any) -> None:
        table[key] = value


def end_with_parent() -> None:
    """A step must not go on where the run itself was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(text: str) -> int:
    settings = json.loads(text)
    sys.path.insert(0, str(Path(__file__).parents[2]))
    end_with_parent()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=lines, flush=True)

    try:
        from tests.gpu_report.lacking import stand_in

        if absent := stand_in():
            print(f"stand-ins for {', '.join(absent)}", file=sys.stderr)
        run = Run(send, Patch(), **settings["run"])
        items = importlib.import_module(f"tests.gpu_report.{settings['step']}").items(run)
    except Exception as error:
        traceback.print_exc()
        send({"row": {"item": "(start)", "ok": False, "values": {}, "message": brief(error)}})
        return 0
    return serve(run, items, settings["only"], settings["skip"], settings["part"], settings["parts"])


if __name__ == "__main__":
    from tests.gpu_report import worker  # not this copy of it: what steps raise is of that one

    code = worker.main(sys.argv[1])
    sys.stderr.flush()
    os._exit(code)  # at once: a GPU that is gone may keep those who take leave of it
