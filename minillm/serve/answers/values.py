"""Values of arguments: strict JSON, literals as Python and other formats write them, and text cast by a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from minillm.serve.answers.guarding import GUARD

MAX_DEPTH = 64
TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,), "object": (dict,),
    "null": (type(None),), "string": (str,),
}  # fmt: skip
WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:_\d+)*)?(?:\.\d*)?(?:[eE][-+]?\d+)?")
_KEY = re.compile(r"[^\s:,{}\[\]]+")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_HEX = {"x": 2, "u": 4, "U": 8}


def loads(text: str) -> Any:
    """JSON, strictly: no NaN, no numbers beyond those of 64 bits, no lone surrogates. Raises ValueError."""
    try:
        value = json.loads(text.replace(GUARD, ""), parse_constant=_refuse, parse_float=_finite)
        dumps(value).encode()
    except RecursionError:
        raise ValueError("JSON of too many levels") from None
    return value


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else _refuse(text)


def cast(text: str, schema: Mapping[str, Any] | None, root: Mapping[str, Any] | None = None) -> Any:
    """A text as the type that its schema names: as it is for a string, else JSON or a literal; text where it is
    neither. Of a schema that names several, a type other than string is tried first."""
    types = types_of(schema or {}, root or {})
    if types == {"string"}:
        return text
    found = _parsed(text.strip())
    fits = any(_is(found, kind) for kind in types) if types else not isinstance(found, str)
    if fits or "string" not in types:
        return found if found is not None or text.strip() in WORDS else text
    return text


def _parsed(text: str) -> Any:
    """JSON, else a literal; None for neither."""
    for read in (loads, literal):
        try:
            return read(text)
        except ValueError:
            continue
    return None


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES.get(kind, ())) and (kind == "boolean" or not isinstance(value, bool))


def types_of(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 8) -> set[str]:
    """The types that a schema allows, as far as it says; references go to its root."""
    if not isinstance(schema, Mapping) or not depth:
        return set()
    if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#/"):
        found: Any = root
        for part in reference[2:].split("/"):
            found = found.get(part) if isinstance(found, Mapping) else None
        return types_of(found or {}, root, depth - 1)
    named = schema.get("type")
    if named:
        return {str(each) for each in (named if isinstance(named, list) else [named])}
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    types = {kind for value in values for kind in TYPES if _is(value, kind)}
    for key in ("anyOf", "oneOf", "allOf"):
        for each in schema.get(key) or ():
            types |= types_of(each, root, depth - 1)
    return types


def literal(text: str, quotes: Mapping[str, str] | None = None, escapes: bool = True) -> Any:
    """A literal, read to its end: numbers, strings in `quotes` (default: ' and "), lists, tuples, dicts with bare or
    quoted keys, and true, false, null as Python or as JSON has them. Raises ValueError."""
    reader = Literals(text, quotes, escapes)
    value = reader.value()
    if reader.space() < len(text):
        raise ValueError(f"{text[reader.at : reader.at + 20]!r} behind a value")
    return value


class Literals:
    """Reads values from a place in a text on; `at` is where the next begins."""

    def __init__(self, text: str, quotes: Mapping[str, str] | None = None, escapes: bool = True):
        self.text, self.at, self.escapes = text, 0, escapes
        self.quotes = {'"': '"', "'": "'"} if quotes is None else quotes

    def space(self) -> int:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def takes(self, mark: str) -> bool:
        """Whether the mark stands here; it is passed."""
        found = self.text.startswith(mark, self.space())
        self.at += len(mark) if found else 0
        return found

    def value(self, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"a value of more than {MAX_DEPTH} levels")
        if (quote := self._quote()) is not None:
            return self._string(quote)
        if self.takes("{"):
            return self.pairs("}", depth)
        for opens, closes in ("[]", "()"):
            if self.takes(opens):
                return self._list(closes, depth)
        word = _KEY.match(self.text, self.space())
        if word and (name := word.group().rstrip(")")) in WORDS:
            self.at += len(name)
            return WORDS[name]
        return self._number()

    def pairs(self, closes: str, depth: int = 0, between: str = ":") -> dict[str, Any]:
        """Keys and values up to what closes them."""
        found: dict[str, Any] = {}
        while not self.takes(closes):
            key = self._key(between)
            if not self.takes(between) or key in found:
                raise ValueError(f"no value of its own for {key!r}")
            found[key] = self.value(depth + 1)
            if not self.takes(",") and not self.text.startswith(closes, self.at):
                raise ValueError(f"{self.text[self.at : self.at + 20]!r} behind a value")
        return found

    def _list(self, closes: str, depth: int) -> list[Any]:
        found: list[Any] = []
        while not self.takes(closes):
            found.append(self.value(depth + 1))
            if not self.takes(",") and not self.text.startswith(closes, self.at):
                raise ValueError(f"{self.text[self.at : self.at + 20]!r} behind a value")
        return found

    def _quote(self) -> str | None:
        self.space()
        return next((quote for quote in self.quotes if self.text.startswith(quote, self.at)), None)

    def _key(self, between: str) -> str:
        if (quote := self._quote()) is not None:
            return self._string(quote)
        match = (
            re.compile(r"[^\W\d]\w*").match(self.text, self.at) if between == "=" else _KEY.match(self.text, self.at)
        )
        if not match:
            raise ValueError(f"{self.text[self.at : self.at + 20]!r} is no key")
        self.at = match.end()
        return match.group()

    def _number(self) -> int | float:
        match = _NUMBER.match(self.text, self.space())
        text = match.group() if match else ""
        self.at += len(text)
        try:
            return int(text) if text.lstrip("+-").replace("_", "").isdigit() else _finite(text)
        except ValueError:
            raise ValueError(f"{self.text[self.at : self.at + 20]!r} is no value") from None

    def _string(self, quote: str) -> str:
        closes, self.at = self.quotes[quote], self.at + len(quote)
        ends = re.compile(re.escape(closes) + (r"|\\" if self.escapes else ""))
        parts = []
        while match := ends.search(self.text, self.at):
            parts.append(self.text[self.at : match.start()])
            self.at = match.end()
            if match.group() == closes:
                return "".join(parts)
            parts.append(self._escaped())
        raise ValueError("a string without an end")

    def _escaped(self) -> str:
        letter = self.text[self.at : self.at + 1]
        self.at += 1
        if letter not in _HEX:
            return _ESCAPES.get(letter, letter if letter in "\\'\"/" else "\\" + letter)
        code = self._code(letter)
        if 0xD800 <= code < 0xDC00 and self.text.startswith("\\u", self.at):  # JSON's way of the rarer characters
            self.at += 2
            low = self._code("u")
            code = 0x10000 + ((code - 0xD800) << 10) + low - 0xDC00 if 0xDC00 <= low < 0xE000 else code
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise ValueError(f"\\{letter} with {code:x} is no character")
        return chr(code)

    def _code(self, letter: str) -> int:
        digits = self.text[self.at : self.at + _HEX[letter]]
        self.at += len(digits)
        return int(digits, 16) if re.fullmatch(r"[0-9a-fA-F]+", digits) else 0x110000
