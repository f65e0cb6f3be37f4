"""How the chat page looks, and what it makes of texts, in a real Chromium."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.helpers.stub_server import PAGE


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light(visit: Any, scheme: str) -> None:
    here = visit(color_scheme=scheme)

    def brightness() -> int:
        colour = here.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert (brightness() > 382) is (scheme == "light")
    here.page.click("#theme")
    assert (brightness() > 382) is (scheme == "dark")


def test_it_fits_a_phone(visit: Any) -> None:
    wide = "| a | b |\n|---|---|\n| " + "x" * 200 + " | y |\n\n```\n" + "z" * 300 + "\n```\n" + "w" * 300
    here = visit([{"content": wide}], viewport={"width": 360, "height": 640})
    here.answered("v" * 300)
    assert here.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert here.page.evaluate("document.getElementById('log').scrollWidth") <= 360
    assert not here.page.is_visible("#side")
    here.page.click("#menu")
    assert here.page.is_visible("#new")
    here.page.click("#new")
    assert not here.page.is_visible("#side")
    box = here.page.locator("#send").bounding_box()
    assert box["y"] + box["height"] <= 640


HOSTILE = [
    "<script>window.hurt = 1</script>", "<img src=x onerror='window.hurt = 1'>", "<svg onload=window.hurt=1>",
    "[a](javascript:window.hurt=1)", "[a](JaVaScRiPt:window.hurt=1)", "[a](data:text/html,<script>1</script>)",
    "[a](vbscript:x)", "![a](javascript:window.hurt=1)", "![a](http://evil.example/x.png)", "[a](//evil.example)",
    "[<img src=x onerror=window.hurt=1>](http://a.example)", '[a](http://a.example "onmouseover=window.hurt=1")',
    "[a](http://a.example\"onclick=\"window.hurt=1)", "```<img src=x onerror=window.hurt=1>\ncode\n```",
    "```html\n<script>window.hurt = 1</script>\n```", "`<script>window.hurt=1</script>`", "# <iframe src=javascript:1>",
    "| <img src=x onerror=window.hurt=1> | b |\n|---|---|\n| <script>window.hurt=1</script> | c |",
    "> <style>*{display:none}</style>", "- <form action=http://evil.example><button>x</button></form>",
    "**<b onclick=window.hurt=1>x</b>**", "&lt;script&gt;window.hurt=1&lt;/script&gt;", "<a href=javascript:1>x</a>",
    "\\<script>window.hurt=1\\</script>", "[a]: javascript:window.hurt=1\n[a]", "<http://a.example/<script>>",
    "\u202e<script>\u202c", "<meta http-equiv=refresh content='0;url=http://evil.example'>",
]  # fmt: skip
ALLOWED = {
    "p", "a", "code", "pre", "strong", "em", "s", "h1", "blockquote", "ul", "ol", "li", "hr", "br", "table", "thead",
    "tbody", "tr", "th", "td", "div", "header", "span", "button",
}  # fmt: skip
DRAWN = """async (text) => {
  const { markdown } = await import("/page/markdown.js");
  const made = document.createElement("div");
  made.append(...markdown(text));
  const all = [...made.querySelectorAll("*")];
  return {
    text: made.textContent, names: all.map((each) => each.localName),
    attributes: all.flatMap((each) => [...each.attributes].map((one) => `${each.localName} ${one.name}=${one.value}`)),
  };
}"""


def test_text_of_a_model_is_never_html(visit: Any) -> None:
    here = visit()
    for text in HOSTILE:
        drawn = here.page.evaluate(DRAWN, text)
        assert set(drawn["names"]) <= ALLOWED, text
        for attribute in drawn["attributes"]:
            name, value = attribute.split(" ", 1)[1].split("=", 1)
            assert name in ("href", "target", "rel", "class", "type", "tabindex", "start"), text
            assert name != "href" or re.match(r"https?://|mailto:", value), text
    here.stub.deltas = [{"reasoning_content": "\n".join(HOSTILE)}, {"content": "\n\n".join(HOSTILE)}]
    here.answered("\n".join(HOSTILE))
    here.page.click("summary")
    assert here.page.evaluate("window.hurt") is None
    assert here.page.locator("#log :is(script, img, svg, iframe, style, form, meta)").count() == 0


def test_pages_have_no_way_to_html() -> None:
    for path in PAGE.iterdir():
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|srcdoc", text), (
            path
        )
        assert path.suffix == ".js" or "http" not in text, path  # nothing comes from elsewhere
    assert sum(path.read_text().count("\n") for path in PAGE.iterdir()) < 900


@pytest.mark.parametrize(
    ("text", "names", "shown"),
    [
        ("a **b** *c* ~~d~~ `e`", ["p", "strong", "em", "s", "code"], "a b c d e"),
        ("# T\n\ntext\nmore", ["h1", "p"], "Ttext\nmore"),
        ("- a\n- b\n  - c", ["ul", "li", "li", "ul", "li"], "abc"),
        ("1. a\n2. b", ["ol", "li", "li"], "ab"),
        ("> a\n> b", ["blockquote", "p"], "a\nb"),
        ("snake_case_name 2*3*4 a * b * c", ["p", "em"], "snake_case_name 234 a * b * c"),
        ("a\\*b\\* [x", ["p"], "a*b* [x"),
        ("see https://a.example/b_c_d.", ["p", "a"], "see https://a.example/b_c_d."),
        ("---", ["hr"], ""),
        ("``a`b``", ["p", "code"], "a`b"),
        ("```js\nlet a = `x`;\n", ["div", "header", "span", "button", "pre", "code"], "jsCopylet a = `x`;\n"),
        ("", [], ""), ("**a", ["p"], "**a"), ("|a|\nb", ["p"], "|a|\nb"),
    ],
)  # fmt: skip
def test_markdown_is_drawn(visit: Any, text: str, names: list[str], shown: str) -> None:
    drawn = visit().page.evaluate(DRAWN, text)
    assert drawn["names"] == names
    assert drawn["text"].rstrip("\n") == shown.rstrip("\n")


@pytest.mark.parametrize(
    "text",
    ["**a" * 20_000, "[a](" * 20_000, "`" * 20_000, "> " * 3000, "- " * 3000, "_a " * 20_000, "|" * 20_000 + "\n|-|",
             "[" * 20_000, "  - a\n" * 3000, "~~a" * 20_000, "<" * 20_000, "a\\" * 20_000]
)  # fmt: skip
def test_odd_markdown_comes_to_an_end(visit: Any, text: str) -> None:
    """Patterns and nesting are bounded: none of these, which take naive ones for ever, stops the page."""
    drawn = visit().page.evaluate(DRAWN, text)
    assert set(drawn["names"]) <= ALLOWED
    assert len(drawn["text"]) <= len(text)


def test_events_are_read_however_they_are_cut(visit: Any) -> None:
    """Bytes of server-sent events, cut anywhere, also inside of characters and line ends."""
    text = ': hi\r\n\r\ndata: {"a": "é😀"}\r\n\r\ndata: one\ndata:two\n\nevent: x\ndata: three\r\rdata: last, unended'
    found = visit().page.evaluate(
        """async (text) => {
          const { events } = await import("/page/api.js");
          const bytes = new TextEncoder().encode(text);
          const all = [];
          for (let size = 1; size < bytes.length; size += 1) {
            const stream = new ReadableStream({ start(made) {
              for (let at = 0; at < bytes.length; at += size) made.enqueue(bytes.slice(at, at + size));
              made.close();
            } });
            const got = [];
            for await (const data of events(stream)) got.push(data);
            all.push(JSON.stringify(got));
          }
          return [...new Set(all)];
        }""",
        text,
    )
    assert [json.loads(each) for each in found] == [['{"a": "é😀"}', "one\ntwo", "three"]]
