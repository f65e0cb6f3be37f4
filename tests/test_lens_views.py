"""What the lens shows: its text, its JSON, its pictures, its page, and what its command line refuses."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import shared

from minillm import hub, lens, lens_page, lens_plot, lens_text, page
from minillm.loading import load

PROMPT = "Once upon a time there was a cat"
COMMAND = ["--kernels", "reference", "--dtype", "float32"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --virtual-time-budget=3000 --enable-logging=stderr --v=0""".split()


@pytest.fixture(scope="module")
def looked() -> tuple[dict[str, Any], Any]:
    """The demo's report on 9 tokens, the first a BOS, with sampling, and the pass."""
    llm = load(dtype="float32", kernels="reference")
    assert llm.tokenizer is not None
    chosen = lens.lens_sampling.settings("temperature=0.7,top_k=30")
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
    documented = (Path(__file__).parent.parent / "docs/lens.md").read_text()
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
    lens_plot.draw(tmp_path / "a.png", found, show, looked[1].attention)
    assert image.imread(tmp_path / "a.png").std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_labels_are_cut_before_they_are_escaped() -> None:
    report = {"texts": {"0": "a" * 10 + "$bcd", "1": "$" * 12}}
    assert lens_plot._words(report, [0, 1]) == ["a" * 10 + r"\$…", r"\$" * 12]


def test_pictures_of_maps(looked: tuple[dict[str, Any], Any], tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    found, seen = looked
    for name, chosen in {"all": (None, None), "layer": (1, None), "head": (1, 2)}.items():
        lens_plot.draw(tmp_path / f"{name}.png", found, "attention", seen.attention, *chosen)
    assert len({image.imread(path).shape for path in tmp_path.iterdir()}) == 3
    with pytest.raises(ValueError, match="room for 64 heads"):
        lens_plot.draw(tmp_path / "many.png", found, "attention", [*seen.attention] * 5)
    with pytest.raises(ValueError, match="room for 32 positions"):
        lens_plot.draw(tmp_path / "long.png", {**found, "tokens": [1] * 33}, "lens", seen.attention)
    assert not (tmp_path / "many.png").exists()


class References(html.parser.HTMLParser):
    """Whatever in a page could point elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        away = {"src", "href", "action", "data", "srcset", "poster", "formaction", "background"}
        self.found += [(tag, name) for name, _ in attrs if name in away]
        self.found += [(tag, "")] if tag in {"link", "iframe", "base", "object", "embed", "img"} else []


def test_the_page_refers_to_nothing(looked: tuple[dict[str, Any], Any], tmp_path: Path) -> None:
    """Nor does what a checkpoint calls its tokens become HTML."""
    evil = "</script><img src=x onerror=alert(1)>"
    found = {**looked[0], "weights": evil, "texts": dict.fromkeys(looked[0]["texts"], evil)}
    lens_page.write(tmp_path / "a.html", found, looked[1].attention)
    text = (tmp_path / "a.html").read_text()
    parser = References()
    parser.feed(text)
    assert parser.found == []
    assert page.POLICY in text
    bare = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch|XMLHttp|import\(|innerHTML|eval\(", bare)


def dumped(path: Path, where: str, profile: Path) -> str:
    """The page behind its script, as a browser has it. Fails on any error of the script."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine to open the page with")
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "--dump-dom", f"file://{path}{where}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Uncaught" not in done.stderr, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def text_of(dom: str, name: str) -> str:
    """The text of the element with this id that holds no other of its kind."""
    match = re.search(rf'<(\w+)[^>]*id="{name}"[^>]*>(.*?)</\1>', dom, re.S)
    assert match, name
    return html.unescape(re.sub(r"<[^>]+>", " ", match[2])).strip()


def test_the_page_in_a_browser(looked: tuple[dict[str, Any], Any], tmp_path: Path) -> None:
    """What the script draws for a place given in the address, and that a name from a checkpoint is only text there."""
    found, seen = looked
    evil = "<img/src=x>"
    texts = {**found["texts"], str(found["tokens"][2]): evil}
    lens_page.write(tmp_path / "a.html", {**found, "texts": texts}, seen.attention)
    dom = dumped(tmp_path / "a.html", "#at=4&level=2&layer=3&head=1", tmp_path / "profile")
    assert "<img" not in dom
    assert dom.count('aria-pressed="true"') == 1
    names = [html.unescape(name) for name in re.findall(r"<button[^>]*>(.*?)</button>", dom)]
    assert names == [evil if at == 2 else name for at, name in enumerate(lens_text.names(found))]
    following = found["following"]
    assert text_of(dom, "following") == (
        f"Behind {names[4]} at position 4: entropy {found['distribution']['entropy'][4]:.3f} nats; what came is "
        f"{names[5]}, probability {following['probability'][4]:.4f}, rank {following['rank'][4]}."
    )
    assert dom.count('class="bar"') == 3
    assert len(re.findall(r"<td[^>]*gridcell", dom)) == 5 * 9
    assert text_of(dom, "cell").startswith("layer 1, behind ")
    assert f"KL(final ‖ here) {found['lens']['kl'][2][4]:.3f} nats" in text_of(dom, "cell")
    best, key = seen.attention[3][1, 4].max(0)
    share = round(best.item() * lens_page.STEPS) / lens_page.STEPS
    assert text_of(dom, "looks").startswith(f"{names[4]} (4) looks at {names[key]} ({key}) {share:.2f}")
    assert dom.count("<polyline") == 3
    assert dom.count("<circle") == 5 + 4 + 4


def test_the_page_by_keyboard_and_mouse(looked: tuple[dict[str, Any], Any], tmp_path: Path) -> None:
    """A script does what a reader would: arrows on the prompt, the lens and the map, a click, and other heads."""
    path = tmp_path / "a.html"
    lens_page.write(path, looked[0], looked[1].attention)
    press = """<script>
      const press = (id, key) => document.activeElement.closest("#" + id).dispatchEvent(
        new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
      const seen = [], note = () => seen.push(location.hash);
      $("prompt").children[8].focus(); press("prompt", "ArrowLeft"); press("prompt", "ArrowLeft"); note();
      lensCell().focus(); press("lens", "ArrowDown"); press("lens", "ArrowRight"); note();
      $("map").focus(); press("map", "ArrowUp"); press("map", "ArrowLeft"); note();
      const looks = $("looks").textContent;
      $("lens").rows[1].cells[1].click(); note();
      $("layer").value = "2"; $("layer").onchange(); $("head").value = "3"; $("head").onchange(); note();
      location.hash = "#at=2&layer=1";
      addEventListener("hashchange", () => { note(); $("about").textContent = seen.join(" ") + " | " + looks; });
    </script>"""
    path.write_text(path.read_text().replace("</body>", f"{press}</body>"))
    hashes, looks = text_of(dumped(path, "", tmp_path / "profile"), "about").split(" | ")
    at = [tuple(int(number) for number in re.findall(r"=(\d+)", each)) for each in hashes.split()]
    # position, level, layer, head: 8 two to the left; down and right; up; the last layer's first token; a head; a link
    assert at == [(6, 4, 0, 0), (7, 3, 0, 0), (6, 3, 0, 0), (0, 4, 0, 0), (0, 4, 2, 3), (2, 4, 1, 3)]
    names, share = lens_text.names(looked[0]), looked[1].attention[0][0, 6, 5].item()
    assert looks == f"{names[6]} (6) looks at {names[5]} (5): {round(share * 255) / 255:.2f}"


def test_the_page_of_one_token(tmp_path: Path) -> None:
    """And of an address that points nowhere."""
    found, seen = lens.report(load(dtype="float32", kernels="reference"), [7])
    lens_page.write(tmp_path / "a.html", found, seen.attention)
    dom = dumped(tmp_path / "a.html", "#at=99&level=-3&layer=x&nonsense=1", tmp_path / "profile")
    assert text_of(dom, "cell").startswith("embedding, behind ")
    assert "(0) 1.00" in text_of(dom, "looks")


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
