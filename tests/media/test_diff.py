"""Two towers on a picture: equal ones differ by rounding, whatever order windows lie in, and a mistake is found where
it was made."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from minillm.diff import __main__ as diff
from minillm.diff import tower
from tests.conftest import shared
from tests.media.recorded import PICTURES, loaded, picture


def run(name: str, capsys: pytest.CaptureFixture[str], *more: str, image: str | None = None) -> dict[str, Any]:
    given = ["--weights", str(shared(f"media/{name}")), "--image", image or str(picture())]
    assert diff.main([*given, "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", PICTURES)
def test_equal_towers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(name, capsys)
    layers = len(loaded(name).prompts.reader.tower.layers)
    assert [row["name"] for row in found["rows"]] == ["patches", *(f"layers.{i}" for i in range(layers)), "tokens"]
    assert found["first"] is None
    assert max(row["so_far"]["relative"] for row in found["rows"]) < 2e-6
    assert all(row["so_far"]["max"] > 0 for row in found["rows"])


def wrong(name: str, change: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint's own tower with a mistake in it."""
    usual = diff.load

    def load(*given: Any, **options: Any) -> Any:
        llm = usual(*given, **options)
        with torch.no_grad():
            change(llm.prompts.reader.tower)
        return llm

    monkeypatch.setattr(diff, "load", load)


MISTAKES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a layer": ("qwen2_5_vl", lambda made: made.layers[2].ffn.down.weight.mul_(1.01), "layers.2"),
    "windows": ("qwen2_5_vl", lambda made: setattr(made, "spec", other(made, whole=())), "layers.1"),
    "patches": ("gemma3", lambda made: made.embed.bias.add_(0.01), "patches"),
    "the projector": ("mistral3", lambda made: made.projector.mix.weight.mul_(1.01), "tokens"),
    "rotation": ("qwen3_vl", lambda made: setattr(made, "spec", other(made, columns="between")), "layers.0"),
}


def other(made: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(made.spec, **changes)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_where_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, change, first = MISTAKES[name]
    wrong(folder, change, monkeypatch)
    found = run(folder, capsys)
    assert found["first"] == first
    assert f"{first} is the first beyond 64" in tower.lines(found)[-1]
    assert sum("<- first" in line for line in tower.lines(found)) == 1


def test_noise_of_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    found = run("mistral3", capsys, image="90x60")
    assert found["brought_to"] == [112, 84]
    assert found["first"] is None


REFUSED = {
    "leave out --against": ("media/gemma3", ["--image", "9x9", "--against", "x"]),
    "sees no pictures": ("media/qwen2_audio", ["--image", "9x9"]),
    "one side over 200 times": ("media/gemma3", ["--image", "1x900"]),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_refused(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, more = REFUSED[said]
    assert diff.main(["--weights", str(shared(folder)), *more]) == 2
    assert said in capsys.readouterr().err
