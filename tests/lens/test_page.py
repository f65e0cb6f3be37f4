"""The page of the lens: that it needs nothing else, and what a browser makes of it."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from minillm.lens import __main__ as lens
from minillm.lens import page as lens_page
from minillm.lens import text as lens_text
from minillm.loading import load
from minillm.report import page
from tests.lens.test_views import looked as looked

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --virtual-time-budget=3000 --enable-logging=stderr --v=0""".split()


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
