"""How single tokens read: their text with its space in front, the bytes of those that are part of a character, and
whitespace that can be seen."""

from __future__ import annotations

import re
from collections.abc import Iterable

from minillm.guard.screen import printable
from minillm.text.tokenizer import Tokenizer

SIGNS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how vocabularies with byte fallback write one


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes each byte as (GPT-2): its own where that can be seen, else the next free
    one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [each for each in range(0x100) if each not in seen]
    return {chr(each): each for each in seen} | {chr(0x100 + i): each for i, each in enumerate(others)}


BYTE_LEVEL = _byte_alphabet()


def texts(tokenizer: Tokenizer | None, ids: Iterable[int]) -> dict[int, str]:
    """The text of each id. A token that is no whole character reads as its bytes, "<E2 80>"; one without any text as
    its name in the vocabulary; and without a tokenizer, or outside its vocabulary, an id as "#17"."""
    if tokenizer is None:
        return {i: f"#{i}" for i in set(ids)}
    before = tokenizer.encode("a", special=False)  # in front of the token: decoders strip the space before a first word
    return {i: _text(tokenizer, before, i) for i in set(ids)}


def _text(tokenizer: Tokenizer, before: list[int], token: int) -> str:
    known, whole = (tokenizer.decode(ids, skip_special=False) for ids in (before, [*before, token]))
    text = whole[len(known) :] if whole.startswith(known) else tokenizer.decode([token], skip_special=False)
    if text and "\ufffd" not in text:
        return text
    name = tokenizer.backend.name_of(token)
    if name is None:
        return f"#{token}"
    if found := BYTE.fullmatch(name):
        return f"<{found[1]}>"
    if text and all(each in BYTE_LEVEL for each in name):
        return f"<{' '.join(f'{BYTE_LEVEL[each]:02X}' for each in name)}>"
    return name


def visible(text: str) -> str:
    """A token's text for a screen: whitespace as signs, and nothing that steers a terminal."""
    return printable("".join(SIGNS.get(each, each) for each in text))
