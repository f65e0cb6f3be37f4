"""Calls with JSON arguments: an object that names function and arguments, or arguments behind a lead that names the
function. They are given out while they are written, as soon as the function is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from minillm.serve.answers.bodies import Call
from minillm.serve.answers.calls import HEAD, MAX_LEAD, Closes, Out
from minillm.serve.answers.scanning import Scanner
from minillm.serve.answers.styles import Style
from minillm.serve.answers.values import dumps, loads

KEYS = ("name", "arguments", "parameters", "type", "function", "id")
_FIRST = re.compile(r'\s*(\{\s*("[^"\\]{0,20}("|\Z).*)?)?', re.DOTALL)
_KEY = re.compile(r'\s*\{\s*"([^"\\]*)"')
_PREFIX = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_VALUES, _BETWEEN = json.JSONDecoder(), re.compile(r"[\s,:]*")


class JsonCalls:
    """Goes through lead, object and closing marks, and from there to the next object if a joint leads to one."""

    def __init__(self, style: Style, mark: str, out: Out, name: str | None = None):
        self.style, self.out, self.back, self.name = style, out, "", name
        self.mark = "" if mark == style.bare else mark
        self.held, self.pending = self.mark, ""  # `held` is what has not been accounted for
        self.id: str | None = None
        self.step: Callable[[], bool] = self._lead
        self.rest: str | None = None
        self.closes = Closes(style.closes)

    def push(self, text: str) -> str | None:
        self.pending += text
        while self.rest is None and self.step():
            pass
        return self.rest

    def _fail(self, back: str, rest: str) -> bool:
        self.back, self.rest = back, rest
        return False

    def _lead(self) -> bool:
        head, brace, _ = self.pending.partition("{")
        plain = "(?P<name>" not in self.style.lead
        if len(head) > MAX_LEAD or (plain and head.strip() not in ("", "[")):
            return self._fail(self.held, self.pending)
        if not brace:
            return False
        match = re.fullmatch(self.style.lead, head)
        named = match.groupdict() if match else {}
        if not match or ("name" in named and named["name"] not in self.out.tools):
            return self._fail(self.held, self.pending)
        self.name, self.id = named.get("name", self.name), named.get("id")
        self.held, self.pending = self.held + head, self.pending[len(head) :]
        return self._begin()

    def _begin(self) -> bool:
        self.scanner = Scanner({'"': '"'}, escapes=True)
        self.parts: list[str] = []
        self.size, self.begun = 0, False
        self.arguments: Scanner | None = None
        self.step = self._object
        return True

    def _object(self) -> bool:
        if not self.pending:
            return False
        end = self.scanner.feed(self.pending)
        piece = self.pending if end is None else self.pending[:end]
        self.pending = self.pending[len(piece) :]
        self.parts.append(piece)
        self.size += len(piece)
        if not self._plausible():
            whole = self.held + "".join(self.parts) + self.pending
            size = len(self.held) or 1
            return self._fail(whole[:size], whole[size:])
        self._give(piece)
        if self.scanner.failed:
            return self._fail("" if self.begun else self.held + "".join(self.parts), self.pending)
        return end is not None and self._ended()

    def _plausible(self) -> bool:
        """Whether this may be a call, as far as its first key tells."""
        if self.name is not None or self.begun or self.size - len(self.parts[-1]) > HEAD:
            return True
        head = "".join(self.parts)[:HEAD]
        key = _KEY.match(head)
        return bool(_FIRST.fullmatch(head)) and (key is None or key[1] in KEYS)

    def _give(self, piece: str) -> None:
        """Arguments as far as they have come, once the function is known."""
        if not self.out.early:
            return
        if self.begun:
            self._pass(piece)
        elif self.name is not None:
            self.begun = True
            self.out.call(self.name, self.id)
            self._pass("".join(self.parts))
        elif self.size - len(piece) <= HEAD:
            text = "".join(self.parts)
            match = _PREFIX.match(text[:HEAD])
            if match and match[1] in self.out.tools:
                self.begun, self.arguments = True, Scanner({'"': '"'}, escapes=True)
                self.out.call(match[1])
                self._pass(text[match.end() :])

    def _pass(self, text: str) -> None:
        if self.name is None:
            if self.arguments is None:
                return
            end = self.arguments.feed(text)
            if end is not None:
                text, self.arguments = text[:end], None
        self.out.arguments(text)

    def _ended(self) -> bool:
        text = "".join(self.parts)
        if not self.begun:
            call = called(text) if self.name is None else (self.name, checked(text))
            if call is None or call[1] is None or call[0] not in self.out.tools:
                return self._fail(self.held + text, self.pending)
            self.out.call(call[0], self.id)
            self.out.arguments(call[1])
        self.held, self.step = "", self._after
        return True

    def _after(self) -> bool:
        """Behind a call: another one, or what closes them."""
        text = self.pending.lstrip()
        if not text and len(self.pending) <= MAX_LEAD:
            return False
        if self.style.joint and text.startswith(self.style.joint):
            following = text[len(self.style.joint) :].lstrip()
            if not following and len(text) <= MAX_LEAD:
                return False
            if following.startswith("{"):
                self.held, self.name = text[: len(text) - len(following)], None
                self.pending = following
                return self._begin()
        self.rest = self.closes.push(self.pending)
        self.pending, self.step = "", self._closing
        return False

    def _closing(self) -> bool:
        self.rest = self.closes.push(self.pending)
        self.pending = ""
        return False

    def finish(self, whole: bool) -> None:
        if self.rest is not None or self.begun_and_open():
            return
        if self.step == self._closing:
            self.back = self.closes.pending
        elif self.step == self._after:
            self.back = self.pending
        else:
            unfinished = [] if self.step == self._lead else self.parts
            self.back = self.held + "".join(unfinished) + self.pending

    def begun_and_open(self) -> bool:
        """Whether arguments have been given out that have not ended."""
        return self.step == self._object and self.begun


def called(text: str) -> Call | None:
    """The function and the arguments of a JSON object that names both; those left out are none."""
    try:
        found = loads(text)
    except ValueError:
        return None
    inner = found.get("function")
    if isinstance(inner, dict):
        found, text = inner, dumps(inner)
    name = found.get("name") if isinstance(found.get("name"), str) else inner
    key = next((key for key in ("arguments", "parameters") if found.get(key) is not None), None)
    if not isinstance(name, str):
        return None
    if key is None:
        return name, "{}"
    if isinstance(found[key], dict):
        return name, written(text, key)
    inside = checked(found[key]) if isinstance(found[key], str) and found[key].strip() else None
    return (name, inside) if inside else (name, "{}") if found[key] == "" else None


def checked(text: str) -> str | None:
    """The text, if it is a JSON object."""
    try:
        return text if isinstance(loads(text), dict) else None
    except ValueError:
        return None


def written(text: str, key: str) -> str:
    """The value of a key as it stands in a valid JSON object."""
    at, found = _behind(text, text.index("{") + 1), ""
    while text[at] != "}":
        name, at = _VALUES.raw_decode(text, at)
        begins = _behind(text, at)
        _, ends = _VALUES.raw_decode(text, begins)
        found = text[begins:ends] if name == key else found
        at = _behind(text, ends)
    return found


def _behind(text: str, at: int) -> int:
    """The next place that has neither white space nor a mark between values."""
    match = _BETWEEN.match(text, at)
    return match.end() if match else at
