"""Perplexity: its windows, its numbers against a direct computation, and what the command line refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm import perplexity
from minillm.engine import scoring
from minillm.engine.windows import windows
from minillm.hub import DEMO
from minillm.perplexity import nats
from tests.conftest import shared

TEXT = "Once upon a time there was a little girl named Lily. She loved to play outside in the park with her dog. " * 3


@given(st.integers(2, 80), st.integers(1, 30), st.data())
def test_windows(count: int, context: int, data: st.DataObject) -> None:
    """Every token but the first is predicted once, and behind the first window from context - stride + 1 on."""
    stride = data.draw(st.integers(1, context))
    predicted = []
    for first, last, predictions in windows(count, context, stride):
        assert 0 <= first < last <= min(first + context, count - 1)
        these = range(last - predictions + 1, last + 1)
        assert these[0] > first
        if first:
            assert these[0] - first >= context - stride + 1
        predicted.extend(these)
    assert predicted == list(range(1, count))


def directly(llm: minillm.LLM, ids: list[int], context: int, stride: int) -> float:
    """Token by token: each with the window that predicts it, by itself."""
    total, done = 0.0, 1
    for first in range(0, len(ids), stride):
        last = min(first + context, len(ids) - 1)
        for at in range(done, last + 1):
            with torch.no_grad():
                logits = llm.model(torch.tensor([ids[first:at]]), last_only=True)[0, -1]
            total -= F.log_softmax(logits.double(), -1)[ids[at]].item()
        done = max(done, last + 1)
    return total


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (50, 1), (512, 100), (1, 1)])
def test_by_hand(context: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether windows go through one by one or together, and the logits in pieces or at once."""
    llm = minillm.load(dtype="float32")
    ids = llm.tokenizer.encode(TEXT)[:60]
    expected = directly(llm, ids, context, stride)
    assert nats(llm, ids, context, stride) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(scoring, "BUDGET", 20)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 3 * llm.spec.vocab_size)
    assert nats(llm, ids, context, stride) == pytest.approx(expected, rel=1e-5)


def test_recorded_perplexity(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What transformers computed over the same windows; they leave out the tail of the text, which counts here."""
    text = shared("checkpoints/eval.txt")
    recorded = json.loads((stories / "expected/outputs.json").read_text())
    command = ["--weights", str(stories), "--text", str(text), "--context", "160", "--stride", "160"]
    assert perplexity.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["before"]
    llm = minillm.load(stories)
    ids = llm.tokenizer.encode(text.read_text())
    tail = nats(llm, ids[recorded["perplexity_tokens"] :], 160, 160)
    whole = found["nats"] * found["tokens"]
    assert found["tokens"] == len(ids) - 1
    assert math.exp((whole - tail) / recorded["perplexity_tokens"]) == pytest.approx(recorded["perplexity"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["nats"]))


STORIES = ["260K", "-mixtral", "-qwen3-moe", "-deepseek-v3", "-phi3", "-gemma2"]


@pytest.mark.parametrize("name", STORIES)
def test_what_integers_cost(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Percent of perplexity over a third of the text, on the path that is fastest here. Over all of it int4 costs
    4.8 on the smallest and 0.7 to 3.0 on the others, int8 0.1 at most."""
    folder, text = shared(f"checkpoints/stories{name}"), shared("checkpoints/eval.txt").read_text()
    (tmp_path / "text").write_text(text[: len(text) // 3])
    for scheme, most in (("int8", 0.5), ("int4", 6.0)):
        command = ["--weights", str(folder), "--context", "160", "--stride", "160", "--quantize", scheme, "--json"]
        assert perplexity.main([*command, "--text", str(tmp_path / "text")]) == 0
        assert json.loads(capsys.readouterr().out)["change_percent"] <= most


def test_text_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text(TEXT)
    assert perplexity.main(["--text", str(tmp_path / "text"), "--quantize", "int4", "--context", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["plain", "int4", "change"]
    assert "windows of 64 every 32" in lines[0]
    assert " bits per byte)" in lines[0]


def test_bits_per_byte(tmp_path: Path, stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bits of all predictions over the bytes they are of: with a BOS all of the text, without one not those
    of the first token."""
    folder = Path(shutil.copytree(stories, tmp_path / "copy"))
    text = "Once upon a time: " + "\u2019" * 5 + TEXT
    (tmp_path / "text").write_text(text)
    command = ["--weights", str(folder), "--text", str(tmp_path / "text"), "--kernels", "reference", "--json"]

    def measured() -> tuple[float, int]:
        assert perplexity.main(command) == 0
        found = json.loads(capsys.readouterr().out)["before"]
        return found["nats"] * found["tokens"] / math.log(2) / found["bits_per_byte"], found["tokens"]

    behind_bos = measured()
    assert behind_bos[0] == pytest.approx(len(text.encode()))
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**values, "post_processor": None}))
    ids = minillm.load(folder).tokenizer.encode(text)
    first = minillm.load(folder).tokenizer.decode(ids[:1])
    assert first == text[: len(first)] != ""
    assert measured() == (pytest.approx(len(text.encode()) - len(first)), behind_bos[1] - 1)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", [], "nothing to predict"),
        (None, [], "no such file"),
        (TEXT, ["--context", "100000"], "--context is 100000"),
        (TEXT, ["--context", "8", "--stride", "9"], "--stride is 9"),
        (TEXT, ["--stride", "0"], "--stride is 0"),
        (TEXT, ["--asymmetric"], "--quantize int4"),
        (b"\xff", [], "is not UTF-8"),
    ],
)
def test_bad_requests(
    text: str | bytes | None, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert perplexity.main(["--text", str(path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.parametrize(
    ("total", "message"),
    [(math.nan, "leave the range of torch."), (math.inf, "try --dtype float32"), (1e9, "the perplexity is exp(")],
)
def test_what_leaves_the_range_is_said(
    total: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text(TEXT)
    monkeypatch.setattr(perplexity, "nats", lambda *_: total)
    assert perplexity.main(["--text", str(tmp_path / "text"), "--quantize", "int4", "--json"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).unlink(missing_ok=True)
    (tmp_path / "text").write_text(TEXT)
    assert perplexity.main(["--weights", str(folder), "--text", str(tmp_path / "text")]) == 2
    err = capsys.readouterr().err
    assert "no tokenizer.json" in err
    assert err.count("\n") == 1
