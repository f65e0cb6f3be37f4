"""The inputs that an attack on this program left behind, each with the command that it broke."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, SHARED, shared
from tests.fuzz.case import Case
from tests.fuzz.pool import FINE, REFUSED, Outcome, Worker
from tests.helpers.tiny import edit_config

INPUTS = "faults/hostile"
COMMANDS = SHARED / INPUTS / "commands.json"
GIVEN: dict[str, str] = json.loads(COMMANDS.read_text()) if COMMANDS.is_file() else {}
EVERY_TOKEN = ",".join(map(str, range(40)))
# What runs in spite of its oddity; the others are refused.
SAME: dict[str, tuple[list[str], dict[str, Any]]] = {  # what diff is to take no notice of: files and keys
    "s36-attn-implementation": ([], {"_attn_implementation": ...}),
    "s37-adapter": (["adapter*"], {}),
    "t10-diff-pad-token": ([], {"pad_token_id": ...}),
}
CARDS = {"t03-card-bool", "t03-card-int", "t03-card-timestamp"}
RUN = {*SAME, *CARDS, "s30-bin-plain-for-comparison", "m24-cache-of-a-billion", "x04-token-escape"}
RUN |= {"m28-262144-experts"}  # large, but a model
RUN |= {"s43-folder-for-a-file"}  # whose folder is empty, and lost in a copy: test_siblings.py makes such

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the worker forks, and measures by /proc"),
    pytest.mark.skipif(not GIVEN, reason=f"shared material is absent: {INPUTS}"),
]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(("generate", "plan", "diff")) as made:
        yield made


def run(worker: Worker, name: str, folder: Path | None = None, more: str = "") -> Outcome:
    argv = shlex.split(GIVEN[name].replace("{d}", str(folder or SHARED / INPUTS / name)) + more)
    return worker.run(Case(name, argv))


@pytest.mark.parametrize("name", sorted({*GIVEN} - RUN))
def test_refused_in_one_line(name: str, worker: Worker) -> None:
    outcome = run(worker, name)
    assert outcome.verdict == REFUSED, (outcome.verdict, outcome.said, outcome.out[:200])
    assert outcome.err.count("minillm: error: ") == 1


def test_a_plain_pytorch_file_runs(worker: Worker) -> None:
    outcome = run(worker, "s30-bin-plain-for-comparison")
    assert outcome.verdict == FINE, outcome.said
    assert json.loads(outcome.out)["token_ids"] == [0, 37]


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_card_is_borne(name: str, worker: Worker) -> None:
    """`plan` says that it does not understand it."""
    assert run(worker, name).verdict == FINE


def test_a_long_answer_takes_no_memory_before_it_comes(worker: Worker) -> None:
    """A generation_config.json asks for 80 million tokens; here any token ends the text."""
    outcome = run(worker, "m24-cache-of-a-billion", more=f" --stop-token-ids {EVERY_TOKEN}")
    assert outcome.verdict in (FINE, REFUSED), (outcome.verdict, outcome.said)
    assert outcome.grown < 500e6


def plain(folder: Path, given: Path, without: list[str], **changes: Any) -> Path:
    """A copy of a checkpoint without some files and keys."""
    shutil.copytree(given, folder, ignore=shutil.ignore_patterns(*without), copy_function=shutil.copyfile)
    os.chmod(folder, 0o755)
    edit_config(folder, **changes)
    return folder


@pytest.mark.parametrize("name", SAME)
def test_the_reference_is_the_same_without(name: str, worker: Worker, tmp_path: Path) -> None:
    """What a folder says of how transformers is to run changes nothing, or is refused."""
    given, (without, changes) = shared(f"{INPUTS}/{name}"), SAME[name]
    found, expected = run(worker, name), run(worker, name, plain(tmp_path / name, given, without, **changes))
    assert expected.verdict == FINE, expected.said
    if found.verdict != REFUSED:
        assert found.out.replace(str(given), "F") == expected.out.replace(str(tmp_path / name), "F")
        assert found.verdict == FINE, found.said


def test_many_experts_are_planned_for_in_time(worker: Worker) -> None:
    """Or refused."""
    outcome = run(worker, "m28-262144-experts")
    assert outcome.verdict in (FINE, REFUSED), (outcome.verdict, outcome.said)


def test_tokens_do_not_steer_a_terminal() -> None:
    name = "x04-token-escape"
    argv = shlex.split(GIVEN[name].replace("{d}", str(SHARED / INPUTS / name)))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "minillm", *argv]
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, cwd=ROOT, env=environment) as process:
        os.close(theirs)
        shown = b""
        while data := _read(ours):
            shown += data
        _, code = process.communicate(timeout=60), process.returncode
    os.close(ours)
    assert code == 0, shown
    assert b"\\u001b]0;owned" in shown
    assert not {0x1B, 0x07, 0x9B} & set(shown)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # as Linux says that nobody holds the other end
        return b""
