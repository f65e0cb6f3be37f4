"""What the lens shows: its text, its JSON, its pictures, and what its command line refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minillm import hub
from minillm.lens import __main__ as lens
from minillm.lens import plot, sampling
from minillm.lens import text as lens_text
from minillm.loading import load
from tests.conftest import ROOT, shared

PROMPT = "Once upon a time there was a cat"
COMMAND = ["--kernels", "reference", "--dtype", "float32"]


@pytest.fixture(scope="module")
def looked() -> tuple[dict[str, Any], Any]:
    """The demo's report on 9 tokens, the first a BOS, with sampling, and the pass."""
    llm = load(dtype="float32", kernels="reference")
    assert llm.tokenizer is not None
    chosen = sampling.settings("temperature=0.7,top_k=30")
    return lens.report(llm, llm.tokenizer.encode(PROMPT), 3, chosen)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert lens.main([*COMMAND, *arguments]) == 0
    return capsys.readouterr().out


def test_text(looked: tuple[dict[str, Any], Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Everything, without a terminal and so without colours; each part as the report has it."""
    found, _ = looked
    text = run(capsys, "--prompt", PROMPT, "--top-k", "3")
    assert "\x1b" not in text
    sections = text.split("\n\n")
    rows = sections[1].splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [[str(at), name] for at, name in enumerate(lens_text.names(found))]
    for row, chance, rank in zip(rows[1:], found["following"]["probability"], found["following"]["rank"], strict=True):
        assert row.split()[2:4] == [f"{chance:.4f}", str(rank)]
    assert [row.split()[-1] for row in sections[3].splitlines()[1:]] == [
        str(level[-1]) for level in reversed(found["lens"]["rank"])
    ]
    assert len(sections[4].splitlines()) == 2 + 4 * 4
    assert sections[5].splitlines()[-1].startswith("embedding")
    assert run(capsys, "--prompt", PROMPT, "--show", "attention").split("\n\n")[1].strip() == sections[4].strip()


def test_colours(looked: tuple[dict[str, Any], Any]) -> None:
    """One background for each token but the first, darker for more surprise; and none without colours."""
    found = {**looked[0], "following": {**looked[0]["following"], "nats": [0.1, 0.7, 1.5, 3, 5, 9, 0, 0.5]}}
    line = list(lens_text.lines(found, "distribution", None, True))[2]
    assert re.findall(r"48;5;(\d+)m", line) == ["231", "195", "153", "111", "75", "33", "231", "195"]
    assert re.sub(r"\x1b\[[0-9;]*m", "", line) == "".join(lens_text.names(found))
    assert not any("\x1b" in line for line in lens_text.lines(found, None, None, False))


def test_narrow_terminals(looked: tuple[dict[str, Any], Any]) -> None:
    """As many of the last positions as fit, and a line that says so."""
    for width in (40, 60, 200):
        lines = list(lens_text.lines(looked[0], "lens", None, False, width))[3:]
        fit = min((width - 10) // 11, 9)
        assert len(lines[0].split()) == fit
        assert max(map(len, lines[: lines.index("")])) <= width
    assert "the last 2 of 9 positions" in list(lens_text.lines(looked[0], "lens", None, False, 40))[2]


def test_wide_characters_keep_their_columns(looked: tuple[dict[str, Any], Any]) -> None:
    texts = {**looked[0]["texts"], str(looked[0]["tokens"][2]): "日本語テスト", str(looked[0]["tokens"][3]): "e\u0301"}
    head = list(lens_text.lines({**looked[0], "texts": texts}, "lens", None, False, 200))[3]
    cells = re.fullmatch(r" {10}(?:\S+ +){2}(日本語テ… +)(e\u0301 +)·time .*", head)
    assert cells, head
    assert [len(each) for each in cells.groups()] == [7, 12]  # 4 of two columns and 3; a letter, its accent, 10 spaces


def test_many_heads_are_a_line_for_each_layer(looked: tuple[dict[str, Any], Any]) -> None:
    """Unless they are asked for."""
    found = looked[0]
    many = {**found, "heads": {kind: [row * 5 for row in rows] for kind, rows in found["heads"].items()}}
    alone = list(lens_text.lines(many, "attention", None, False, 200))
    assert len(alone) == 4 + 4 * 20
    text = list(lens_text.lines(many, None, None, False, 200))
    start = next(at for at, line in enumerate(text) if line.startswith("heads"))
    assert text[start + 6] == ""
    for row, line in enumerate(text[start + 2 : start + 6]):
        said = re.findall(r"([0-9.]+) \((\d+)\) to ([0-9.]+) \((\d+)\)", line)
        assert len(said) == 3
        for kind, (least, at, most, other) in zip(("entropy", "distance", "first"), said, strict=True):
            values = found["heads"][kind][row]
            assert (float(least), float(most)) == (round(min(values), 2), round(max(values), 2))
            assert (values[int(at)], values[int(other)]) == (min(values), max(values))


def test_a_map_in_text(looked: tuple[dict[str, Any], Any], capsys: pytest.CaptureFixture[str]) -> None:
    weights = looked[1].attention[1][2].tolist()
    lines = run(capsys, "--prompt", PROMPT, "--layer", "1", "--head", "2").splitlines()[1:]
    assert len(lines) == 9
    for at, line in enumerate(lines):
        shades = [" ░▒▓█".index(line.ljust(40)[19 + 2 * key]) for key in range(9)]
        assert shades == [sum(w > limit for limit in (0.05, 0.2, 0.4, 0.7)) for w in weights[at]]
    assert any("▒" in line for line in lines)


def test_json(looked: tuple[dict[str, Any], Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The report, its keys as documented, and the maps only where asked for."""
    command = ["--prompt", PROMPT, "--top-k", "3", "--sampling", "temperature=0.7,top_k=30", "--json"]
    found = json.loads(run(capsys, *command))
    assert found == looked[0]
    documented = (ROOT / "docs/lens.md").read_text()
    nested = {
        *found,
        *(key for part in found.values() if isinstance(part, dict) for key in part if not key.isdecimal()),
    }
    assert {key for key in nested | {"attention"} if f"`{key}`" not in documented} == set()
    maps = json.loads(run(capsys, *command, "--attention"))["attention"]
    for own, layer in zip(maps, looked[1].attention, strict=True):
        assert abs(layer - layer.new_tensor(own)).max() <= 0.5e-4 + 1e-7


@pytest.mark.parametrize("show", lens_text.SECTIONS)
def test_pictures(show: str, looked: tuple[dict[str, Any], Any], tmp_path: Path) -> None:
    """Complete files in which there is something to see, with one token too; awkward labels are drawn as they are."""
    image = pytest.importorskip("matplotlib.image")
    found = {**looked[0], "texts": {**looked[0]["texts"], str(looked[0]["tokens"][-1]): "$\\frac{$_^"}}
    plot.draw(tmp_path / "a.png", found, show, looked[1].attention)
    assert image.imread(tmp_path / "a.png").std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_labels_are_cut_before_they_are_escaped() -> None:
    report = {"texts": {"0": "a" * 10 + "$bcd", "1": "$" * 12}}
    assert plot._words(report, [0, 1]) == ["a" * 10 + r"\$…", r"\$" * 12]


def test_pictures_of_maps(looked: tuple[dict[str, Any], Any], tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    found, seen = looked
    for name, chosen in {"all": (None, None), "layer": (1, None), "head": (1, 2)}.items():
        plot.draw(tmp_path / f"{name}.png", found, "attention", seen.attention, *chosen)
    assert len({image.imread(path).shape for path in tmp_path.iterdir()}) == 3
    with pytest.raises(ValueError, match="room for 64 heads"):
        plot.draw(tmp_path / "many.png", found, "attention", [*seen.attention] * 5)
    with pytest.raises(ValueError, match="room for 32 positions"):
        plot.draw(tmp_path / "long.png", {**found, "tokens": [1] * 33}, "lens", seen.attention)
    assert not (tmp_path / "many.png").exists()


def test_the_command_writes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture, written = tmp_path / "a.png", tmp_path / "a.html"
    out = run(capsys, "--prompt-ids", "1,5,9", "--plot", str(picture), "--html", str(written), "--json")
    assert json.loads(out)["tokens"] == [1, 5, 9]
    assert picture.stat().st_size > 1000
    assert "const DATA" in written.read_text()


def test_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(hub.DEMO, tmp_path / "demo"))
    (folder / "tokenizer.json").unlink()
    assert "#77" in run(capsys, "--weights", str(folder), "--prompt-ids", "77,8")
    assert lens.main(["--weights", str(folder), "--prompt", "a"]) == 2
    assert "--prompt-ids" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", "0", "--weights", "none"], "--top-k is 0"),  # before anything is loaded
        (["--attention"], "--attention adds"),
        (["--show", "lens", "--json"], "--show goes with text or --plot"),
        (["--layer", "0", "--head", "0", "--html", "x.html"], "--layer goes with"),
        (["--head", "0"], "--head needs --layer"),
        (["--layer", "0"], "--layer needs --head"),
        (["--layer", "0", "--head", "0", "--show", "norms"], "no effect with --show norms"),
        (["--layer", "4", "--head", "0"], "--layer is 4, there are 4"),
        (["--layer", "0", "--head", "-1"], "--head is -1, there are 4"),
        (["--show", "sampling"], "needs --sampling"),
        (["--sampling", "temperature=0"], "is greedy"),
        (["--plot", "x.jpg"], "a picture is a .png"),
        (["--html", "none/x.html"], "there is no folder none"),
    ],
)
def test_bad_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lens.main(["--prompt", "a", *COMMAND, *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_prompts_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lens.main(["--text", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
    for arguments in ([], ["--prompt", "a", "--prompt-ids", "1"], ["--prompt-ids", "1,x"]):
        with pytest.raises(SystemExit) as caught:
            lens.main(arguments)
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_as_a_program() -> None:
    """In a process of its own, on trained weights, with colours where NO_COLOR is not the point: stdout is a pipe."""
    command = [sys.executable, "-m", "minillm.lens", "--weights", str(shared("checkpoints/stories-deepseek-v3"))]
    done = subprocess.run([*command, *COMMAND, "--prompt", "Once upon a"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "logit lens" in done.stdout
    assert "\x1b" not in done.stdout
