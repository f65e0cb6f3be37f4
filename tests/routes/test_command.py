"""`python -m minillm.routes`: what it prints, draws and writes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minillm import LLM
from minillm.report import page
from minillm.routes import __main__ as routes
from minillm.routes import page as routes_page
from minillm.routes import plot
from minillm.routes import text as routes_text
from minillm.routes.record import record
from tests.conftest import ROOT, exit_code, shared
from tests.helpers import tiny

DEMO_MOE = ROOT / "examples/demo_moe"
TEXT = "Once upon a time there was a little girl named Lily. She loved to play outside in the park with her dog. " * 4
OTHER = "The dog and the cat saw a big bird. <b>They</b> ran & ran, and then they were very tired. " * 4

KEYS = {"weights", "text", "tokens", "context", "stride", "dtype", "tie", "layers", "drift"}
LAYER = set(
    "layer num_experts top_k score load weighted_load load_entropy effective_experts max_over_mean never_used "
    "token_entropy top1_weight top1_share margin groups pairs specialists".split()
)
MARGIN = set("min mean max p1 p10 p50 p90 near_ties without_rival histogram".split())
GROUPS = {"num_groups", "top_groups", "load", "used_per_token", "margin"}
DRIFT = {"kind", "against", "tokens", "dtype", "layers"}
MOVED = {"layer", "divergence_bits", "load_change"}
FLIPS = set("flipped experts_kept margin_of_flipped margin_of_kept flipped_of_near_ties flipped_of_others".split())


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run it on the demonstration mixture and a text; its exit code and what it printed."""
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "other").write_text(OTHER)

    def call(*given: str, weights: Path | str = DEMO_MOE) -> tuple[int, str, str]:
        text = [] if "--text" in given else ["--text", str(tmp_path / "text")]
        base = ["--weights", str(weights), *text, "--kernels", "reference"]
        code = exit_code(routes.main, [*base, *given])
        return code, *capsys.readouterr()

    return call


def test_json_has_what_is_documented(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, err = command("--json", "--against-quantize", "int8", "--dtype", "float32")
    found = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert set(found) == KEYS
    for layer in found["layers"]:
        assert set(layer) == LAYER
        assert set(layer["margin"]) == MARGIN
        assert layer["groups"] is None
        for pair in layer["pairs"]:
            assert set(pair) == {"experts", "count", "expected", "lift"}
        for token in (token for each in layer["specialists"] for token in each):
            assert set(token) == {"id", "token", "count", "lift"}
    assert set(found["drift"]) == DRIFT
    assert (found["drift"]["kind"], found["drift"]["against"], found["dtype"]) == ("run", "int8", "float32")
    assert all(set(layer) == MOVED | FLIPS for layer in found["drift"]["layers"])
    drift = json.loads(command("--json", "--against-text", str(tmp_path / "other"))[1])["drift"]
    assert (drift["kind"], set(drift)) == ("text", DRIFT)
    assert all(set(layer) == MOVED and layer["divergence_bits"] > 0 for layer in drift["layers"])
    words = (ROOT / "docs/routes.md").read_text()
    for key in KEYS | LAYER | MARGIN | GROUPS | DRIFT | MOVED | FLIPS:
        assert f"`{key}`" in words, key


def test_nothing_drifts_from_itself(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    again = Path(shutil.copytree(DEMO_MOE, tmp_path / "again"))
    for given in (("--against", str(again)), ("--against-text", str(tmp_path / "text"))):
        for layer in json.loads(command("--json", *given)[1])["drift"]["layers"]:
            assert layer["divergence_bits"] == layer.get("flipped", 0) == 0
            assert not any(layer["load_change"])


def test_flips_happen_at_small_margins(command: Callable[..., tuple[int, str, str]]) -> None:
    """In a trained model in bfloat16 and int4; and its groups of experts are reported."""
    text = shared("checkpoints/eval.txt")
    weights = shared("checkpoints/stories-deepseek-v3")
    given = ["--text", str(text), "--max-tokens", "1000", "--dtype", "float32", "--json"]
    for change in (["--against-dtype", "bfloat16"], ["--against-quantize", "int4"]):
        found = json.loads(command(*given, *change, weights=weights)[1])
        assert found["tokens"] == 1000
        for layer, moved in zip(found["layers"], found["drift"]["layers"], strict=True):
            assert set(layer["groups"]) == GROUPS
            assert set(layer["groups"]["margin"]) == MARGIN
            assert layer["groups"]["used_per_token"] <= layer["groups"]["top_groups"] == 2
            assert moved["margin_of_flipped"] < moved["margin_of_kept"]
            assert moved["flipped_of_near_ties"] > moved["flipped"] > moved["flipped_of_others"]


def test_text_output(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, _ = command("--layer", "1", "--against-text", str(tmp_path / "other"))
    assert code == 0
    assert "\x1b" not in out
    lines = out.splitlines()
    count = json.loads(command("--json")[1])["layers"]
    assert [line.split()[0] for line in lines[2 : 2 + len(count)]] == [str(each["layer"]) for each in count]
    assert all(f"{each['effective_experts']:.1f}" in line for each, line in zip(count, lines[2:], strict=False))
    assert any(line.startswith(f"against {tmp_path}/other") for line in lines)
    for token in (token for each in count[1]["specialists"] for token in each):
        assert f"{token['token']!r} x {token['lift']:.1f}" in out


def test_bars() -> None:
    assert routes_text.bars([0.5, 0.25, 0.25, 0.0], coloured=False) == "█▄▄ "
    assert routes_text.bars([0.5, 0.26, 0.14, 0.1], coloured=True) == "\x1b[33m█\x1b[0m▄▂\x1b[2m▂\x1b[0m"
    assert routes_text.bars([1 / 256] * 256, coloured=False) == "▄" * 64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--layer", "99"], "--layer is 99, the layers with experts are 0, 1"),
        (["--context", "100000"], "--context is 100000"),
        (["--context", "8", "--stride", "9"], "--stride is 9"),
        (["--max-tokens", "0"], "--max-tokens is 0"),
        (["--tie", "nan"], "'nan' is not a number"),
        (["--tie", "-1"], "--tie is -1.0"),
        (["--against-dtype", "float32", "--dtype", "float32"], "the same run twice"),
        (["--against-text", "x", "--against-dtype", "bfloat16"], "give one of them"),
        (["--against-text", "nowhere"], "--against-text nowhere: no such file"),
        (["--text", "nowhere"], "--text nowhere: no such file"),
        (["--text", "EMPTY"], "a text is empty"),
        (["--plot", "x.jpg"], "a picture is a .png file"),
        (["--html", "x.txt"], "a page is a .html file"),
        (["--html", "nowhere/x.html"], "there is no folder nowhere"),
        (["--asymmetric"], "--quantize int4"),
    ],
)
def test_bad_requests(
    given: list[str], message: str, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("")
    code, out, err = command(*[str(tmp_path / "empty") if each == "EMPTY" else each for each in given])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_models_that_cannot_be(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = command(weights=saved)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "this model has no experts" in err
    assert "this model has no experts" in command("--against", str(saved))[2]
    tiny.save(tmp_path, "mixtral", {"num_local_experts": 5})
    assert "no tokenizer.json" in command(weights=tmp_path)[2]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MOE / name, tmp_path)
    assert "outside the vocabulary of 97" in command(weights=tmp_path)[2]
    shutil.rmtree(tmp_path / "oracle", ignore_errors=True)
    tiny.save(tmp_path, "mixtral", {"num_local_experts": 5, "vocab_size": 1000})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MOE / name, tmp_path)
    runs: list[LLM] = []
    monkeypatch.setattr(routes, "record", lambda llm, *rest: runs.append(llm) or record(llm, *rest))
    assert "its layers have other experts" in command("--against", str(tmp_path))[2]
    assert len(runs) == 1  # the second run would be for nothing
    shutil.copytree(DEMO_MOE, tmp_path / "shorter")
    tiny.edit_config(tmp_path / "shorter", max_position_embeddings=64)
    assert "and of 64 tokens; give --context" in command("--against", str(tmp_path / "shorter"))[2]


def test_too_much_to_keep(command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillm.routes.record.MAX_PICKS", 100)
    assert "choices of experts, the limit is 100; give --max-tokens" in command()[2]
    assert command("--max-tokens", "2", "--json")[0] == 0


def test_picture(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "routes.png"
    assert command("--plot", str(path), "--layer", "1", "--against-text", str(tmp_path / "other"))[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plot._load([{"num_experts": 4, "load": [0.5, 0.25, 0.25, 0.0]}]) == [[2, 1, 1, 0]]


def browsed(path: Path, script: str, tmp_path: Path) -> str:
    """The page as a browser has it after a script of ours has used it, with what its own script complained of."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium to look at a page with")
    noted = "<script>window.onerror = text => { document.title = 'fault: ' + text; };</script>"
    text = path.read_text().replace("<style>", noted + "<style>", 1)
    used = tmp_path / "used.html"
    used.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [browser, *flags.split(), "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", used.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


CLICK = """
const at = (canvas, kind, x, y) => { const box = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new MouseEvent(kind, {clientX: box.left + x, clientY: box.top + y})); };
at($("map"), "mousemove", LEFT + 2.5 * CW, TOP + 0.5 * CH);
at($("map"), "click", LEFT + 3.5 * CW, TOP + 1.5 * CH);
$("view").value = "change of load"; $("view").onchange({target: $("view")});
at($("pairs"), "mousemove", LEFT + 28 * 1.5, TOP + 28 * 0.5);
"""


def element(dom: str, name: str) -> str:
    """The text of one element of the page."""
    found = re.search(rf'<(\w+)[^>]* id="{name}"[^>]*>(.*?)</\1>', dom, re.S)
    assert found is not None, name
    return re.sub(r"<[^>]+>", " ", found[2])


def test_page_in_a_browser(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "routes.html"
    given = ["--text", str(tmp_path / "other"), "--against-text", str(tmp_path / "text")]
    code, out, _ = command(*given, "--html", str(path), "--json")
    layers = json.loads(out)["layers"]
    assert code == 0
    dom = browsed(path, CLICK, tmp_path)
    assert "<title>Routes of demo_moe</title>" in dom
    assert element(dom, "said").startswith(f"layer 0, expert 2: {100 * layers[0]['load'][2]:.2f} % of picks")
    assert element(dom, "facts").startswith(f"layer 1, expert 3: {100 * layers[1]['load'][3]:.2f} % of picks")
    for token in layers[1]["specialists"][3]:
        assert f"{token['lift']:.2f}" in element(dom, "shown")
    assert "points" in element(dom, "high")
    assert re.match(r"0 and 1: \d+ tokens for", element(dom, "pairsaid"))
    assert f"{layers[0]['margin']['near_ties'] * 100:.1f} %" in element(dom, "layers")
    assert "Against" in element(dom, "driftname")


def test_a_page_asks_nobody_and_trusts_no_token(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    report: dict[str, Any] = json.loads(command("--json")[1])
    report["text"] = ["<script>alert(1)</script>"]
    report["layers"][0]["specialists"][0] = [{"id": 1, "token": "</script><img src=x>", "count": 9, "lift": 2.0}]
    routes_page.write(tmp_path / "x.html", report, None, {0: torch.tensor([[4, 2], [2, 3]])})
    text = (tmp_path / "x.html").read_text()
    assert page.POLICY in text
    assert "<img" not in text
    assert text.count("</script>") == 1
    assert '"pairs": {"0": [[4, 2], [3]]}' in text
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|https?://(?!www\.w3\.org/2000/svg)", text)


def test_texts_given_one_by_one_count_together(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    one, other = str(tmp_path / "text"), str(tmp_path / "other")
    reports = [
        json.loads(command(*given, "--json")[1]) for given in (("--text", one, other), ("--text", one, "--text", other))
    ]
    assert reports[0] == reports[1]
    assert reports[0]["text"] == [one, other]


def test_a_name_is_no_formula(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "a$^$.txt").write_text(OTHER)
    code, _, err = command("--against-text", str(tmp_path / "a$^$.txt"), "--plot", str(tmp_path / "p.png"))
    assert (code, err) == (0, "")
    assert {each.name for each in tmp_path.iterdir() if each.suffix == ".part"} == set()
