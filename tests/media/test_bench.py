"""The bench of a tower measures the same thing twice; how long it takes is for the machine to say."""

from __future__ import annotations

import json

import pytest

from minillm.bench import seeing
from minillm.bench.__main__ import main
from minillm.report import reference
from tests.conftest import shared
from tests.media.recorded import PICTURES


@pytest.mark.parametrize("name", PICTURES)
def test_both_compute_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["tower", "--weights", str(shared(f"media/{name}")), "--image", "112x64", "--rounds", "1", "--layers", "2"]
    assert main(given) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    assert found["difference"] < 1e-5
    assert found["layers"] == 2
    assert found["ratio"] == found["transformers_ms"] / found["minillm_ms"] > 0
    assert f"{found['ratio']:.2f} x transformers" in out


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_another_tower_is_not_measured(
    factor: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = reference.embeddings
    monkeypatch.setattr(reference, "embeddings", lambda *given: factor * usual(*given))
    assert main(["tower", "--weights", str(shared("media/gemma3")), "--rounds", "1"]) == 2
    assert "of the largest value; see python -m minillm.diff --image" in capsys.readouterr().err


def test_turns_and_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round warms up; who goes first changes."""
    clock, order = [0.0], list[str]()
    monkeypatch.setattr(seeing.time, "perf_counter", lambda: clock[0])

    def takes(name: str, seconds: list[float]):
        def run() -> None:
            order.append(name)
            clock[0] += seconds.pop(0)

        return run

    import torch

    ours, theirs = takes("ours", [9.0, 0.1, 0.3, 0.2]), takes("theirs", [9.0, 0.4, 0.4, 0.5])
    found = seeing.measured(ours, theirs, 3, torch.device("cpu"))
    assert found["minillm_ms"] == pytest.approx(200)
    assert found["transformers_ms"] == pytest.approx(400)
    assert found["ratio"] == pytest.approx(2)
    assert order == ["theirs", "ours", "ours", "theirs"] * 2


@pytest.mark.parametrize("name", ["checkpoints/stories260K", "media/qwen2_audio"])
def test_no_pictures_no_bench(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tower", "--weights", str(shared(name)), "--rounds", "1"]) == 2
    assert "sees no pictures" in capsys.readouterr().err
