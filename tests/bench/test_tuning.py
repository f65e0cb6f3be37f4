"""`minillm.bench tune`: both engines learn the same, in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillm.bench.__main__ import main
from tests.conftest import exit_code


def test_both_begin_with_the_same_loss(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As B is zero, whatever A is; what is timed are the steps behind the first."""
    assert main(["tune", "--weights", str(saved), "--against", "peft", "--tokens", "12", "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    first = [row["losses"][0] for row in report.values()]
    assert list(report) == ["minillm", "peft"]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert all(len(row["steps_s"]) == 2 and row["peak_gb"] > 0 for row in report.values())
    assert "of peft's\n" in out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--tokens", "1"], "--tokens at least 2"),
        (["--random", "qwen2.5-0.5b", "--weights", "x"], "exclude each other"),
    ],
)
def test_mistakes(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, ["tune", *given]) == 2
    assert words in capsys.readouterr().err
