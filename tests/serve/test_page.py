"""The chat page in a real Chromium, against a small server of the OpenAI API."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.stub_server import PAGE, Stub

api = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


class Visit:
    """A page on a stub. Nothing is fetched from elsewhere, and nothing goes wrong in its scripts."""

    def __init__(self, browser: Any, stub: Stub, **how: Any):
        self.stub, self.context = stub, browser.new_context(**how)
        self.faults: list[str] = []
        self.open()

    def open(self) -> None:
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda asked: self._from_here(asked.url))
        self.page.goto(self.stub.url)

    def _from_here(self, url: str) -> None:
        if not url.startswith((self.stub.url, "data:")):
            self.faults.append(f"fetched {url}")

    def ask(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def answered(self, text: str) -> None:
        self.ask(text)
        self.done()

    def until(self, script: str) -> None:
        """Wait for what a script says; the page's policy forbids it to be polled inside."""
        for _ in range(200):
            if self.page.evaluate(script):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(script)

    def done(self) -> None:
        self.page.wait_for_selector("#send:not([hidden])")

    @property
    def bodies(self) -> list[str]:
        return self.page.locator(".message .body").all_inner_texts()  # type: ignore[no-any-return]


@pytest.fixture
def visit(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    made: list[Visit] = []

    def start(deltas: Any = None, key: str = "", **how: Any) -> Visit:
        stub = Stub(deltas, key)
        request.addfinalizer(stub.close)
        made.append(Visit(browser, stub, **how))
        return made[-1]

    yield start
    for each in made:
        each.context.close()
        assert each.faults == []


def call(name: str, arguments: str, index: int = 0) -> list[dict[str, Any]]:
    first = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
    return [{"tool_calls": [first]}, {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}]


def test_an_answer_is_shown_as_it_comes(visit: Any) -> None:
    here = visit([{"content": "Hel"}, {"content": "lo"}, {"pause": 2}, {"content": " there."}])
    here.ask("Hi")
    here.until("document.querySelector('.assistant .body')?.innerText === 'Hello'")
    assert here.page.is_visible("#stop")
    here.done()
    assert here.bodies == ["Hi", "Hello there."]
    (asked,) = here.stub.requests
    assert asked["messages"] == [{"role": "user", "content": "Hi"}]
    assert asked["stream"] is True
    assert asked["model"] == "stub"
    assert "3 tokens" in here.page.inner_text(".stats")


def test_a_conversation_goes_on(visit: Any) -> None:
    here = visit()
    here.answered("One")
    here.answered("Two")
    roles = [each["role"] for each in here.stub.requests[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert here.stub.requests[1]["messages"][1]["content"] == "Hello there."


def test_stop_ends_the_answer_and_the_work(visit: Any) -> None:
    here = visit([{"content": "Once"}, *[{"pause": 0.05}, {"content": " more"}] * 200])
    here.ask("Hi")
    here.until("document.querySelector('.assistant .body')?.innerText.includes('more')")
    here.page.click("#stop")
    here.done()
    assert here.bodies[1].startswith("Once more")
    assert "stopped" in here.page.inner_text(".stats")
    here.page.wait_for_timeout(500)
    assert here.stub.closed == 1


def test_again_and_edit_replace_what_follows(visit: Any) -> None:
    here = visit()
    here.answered("First")
    here.answered("Second")
    here.page.locator(".assistant").nth(1).get_by_text("Again", exact=True).click()
    here.done()
    assert here.stub.requests[2]["messages"] == here.stub.requests[1]["messages"]
    here.page.locator(".user").nth(0).get_by_text("Edit").click()
    here.page.fill(".user textarea", "Other")
    here.page.locator(".user form").get_by_text("Send").click()
    here.done()
    assert here.stub.requests[3]["messages"] == [{"role": "user", "content": "Other"}]
    assert here.bodies == ["Other", "Hello there."]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_folded(visit: Any, name: str) -> None:
    here = visit([{name: "Hm, <i>well</i>."}, {"content": "Yes."}])
    here.answered("Hi")
    assert not here.page.is_visible("details.thought > div")
    here.page.click("summary")
    assert here.page.inner_text("details.thought > div") == "Hm, <i>well</i>."
    here.answered("And?")
    assert here.stub.requests[1]["messages"][1] == {"role": "assistant", "content": "Yes."}


def test_calls_are_shown_and_take_results(visit: Any) -> None:
    here = visit([*call("weather", '{"city": "<b>Oslo"}'), *call("now", "{}", 1)])
    here.answered("Weather?")
    assert '"city": "<b>Oslo"' in here.page.inner_text(".call pre >> nth=0")
    here.stub.deltas = [{"content": "Rain."}]
    here.page.locator(".call input").nth(0).fill("rain")
    here.page.locator(".call button:text('Give')").nth(0).click()
    assert len(here.stub.requests) == 1
    here.page.locator(".call input").nth(0).fill("noon")
    here.page.locator(".call button:text('Give')").nth(0).click()
    here.until("document.querySelectorAll('.assistant').length === 2")
    here.done()
    messages = here.stub.requests[1]["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "<b>Oslo"}'}
    assert {each["tool_call_id"] for each in messages[2:]} == {"call_0", "call_1"}


def test_settings_are_sent_and_kept(visit: Any) -> None:
    here = visit()
    here.page.click("#open-settings")
    given = {
        "system": "Be brief.",
        "temperature": "0.5",
        "top_k": "40",
        "max_completion_tokens": "9",
        "stop": "END\n\nX",
    }
    for name, value in given.items():
        here.page.fill(f"#settings [name={name}]", value)
    here.page.fill("#settings [name=tools]", "{")
    here.page.click("#settings button.main")
    assert "Tools" in here.page.inner_text("#settings-error")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    here.page.fill("#settings [name=tools]", json.dumps([tool]))
    here.page.select_option("#settings [name=thinking]", "false")
    here.page.click("#settings button.main")
    here.page.select_option("#model", "other")
    here.page.close()
    here.open()
    here.until("document.getElementById('model').value === 'other'")
    here.answered("Hi")
    (asked,) = here.stub.requests
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    wanted = {"temperature": 0.5, "top_k": 40, "max_completion_tokens": 9, "stop": ["END", "X"], "tools": [tool]}
    assert {key: asked[key] for key in wanted} == wanted
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked["model"] == "other"
    assert not {"top_p", "min_p", "seed", "logprobs"} & set(asked)


def test_several_chats_are_kept(visit: Any) -> None:
    here = visit()
    here.answered("About cats")
    here.page.click("#new")
    here.answered("About dogs")
    here.page.close()
    here.open()
    assert here.page.locator("#chats li button:first-child").all_inner_texts() == ["About dogs", "About cats"]
    here.page.get_by_role("button", name="About cats", exact=True).click()
    assert here.bodies == ["About cats", "Hello there."]
    here.page.get_by_role("button", name="Delete About cats").click()
    assert here.bodies == ["About dogs", "Hello there."]


def test_a_key_is_asked_for_when_needed(visit: Any) -> None:
    here = visit(key="secret")
    for value in ("wrong", "secret"):
        here.page.wait_for_selector("#key[open]")
        here.page.fill("#key-value", value)
        here.page.click("#key button.main")
    here.until("document.getElementById('model').options.length === 2")
    here.answered("Hi")
    assert here.bodies == ["Hi", "Hello there."]
    assert here.page.evaluate("JSON.stringify(localStorage)").find("secret") < 0


def test_errors_are_said(visit: Any) -> None:
    here = visit([{"content": "Half"}, {"error": "the <b>model</b> is gone"}])
    here.answered("Hi")
    assert here.page.inner_text(".error") == "the <b>model</b> is gone"
    assert here.bodies == ["Hi", "Half"]
    here.stub.deltas = [{"status": 429}]
    here.answered("Again")
    assert here.page.inner_text(".error >> nth=1") == "not now (429)"
    here.stub.close()
    here.answered("Still?")
    assert here.page.inner_text(".error >> nth=2") == "The server is not there."


def test_enter_of_an_input_method_does_not_send(visit: Any) -> None:
    here = visit()
    here.page.fill("#text", "にほん")
    press = "new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true, %s})"
    for how in ("isComposing: true", "keyCode: 229", "shiftKey: true"):
        here.page.evaluate(f"document.getElementById('text').dispatchEvent({press % how})")
    assert here.stub.requests == []
    assert here.page.input_value("#text") == "にほん"
    here.page.press("#text", "Enter")
    here.done()
    assert here.bodies[0] == "にほん"


def test_look_inside_shows_what_else_could_have_been(visit: Any) -> None:
    here = visit([{"content": "Yes"}, {"content": " or\n"}, {"content": "no"}])
    here.page.click("#inside")
    here.answered("Hi")
    assert here.stub.requests[0]["top_logprobs"] == 5
    tokens = here.page.locator("#tokens > span")
    assert tokens.all_text_contents() == ["Yes", " or↵\n", "no"]
    tokens.nth(0).focus()
    here.page.keyboard.press("Enter")
    assert here.page.locator("#choices td").all_text_contents() == ["Yes", "", "90 %", "<b>x", "", "8.21 %"]
    here.page.click("#close-look")
    here.answered("And?")
    assert "logprobs" not in here.stub.requests[1]


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
