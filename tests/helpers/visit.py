"""The chat page in a browser, as a test drives it."""

from __future__ import annotations

from typing import Any

from tests.helpers.stub_server import Stub


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


def call(name: str, arguments: str, index: int = 0) -> list[dict[str, Any]]:
    first = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
    return [{"tool_calls": [first]}, {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}]
