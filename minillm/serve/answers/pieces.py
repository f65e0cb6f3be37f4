"""What an answer is taken apart into."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from minillm.serve.answers.guarding import GUARD

_LETTERS = string.ascii_letters + string.digits
Kind = Literal["content", "reasoning", "call", "arguments"]


@dataclass(frozen=True)
class Piece:
    """A text that goes to one field of the answer. A "call" has the name of its function as text; the "arguments" that
    follow, with the same `index`, are the pieces of its JSON."""

    kind: Kind
    text: str
    index: int = 0
    id: str = ""


def new_id(kind: str) -> str:
    """Of a call, by the kind of a style: "nine" letters and digits, or "call_" with 24."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9)) if kind == "nine" else _long_id()


def _long_id() -> str:
    return "call_" + "".join(secrets.choice(_LETTERS) for _ in range(24))


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours that go to the same field as one, without guards, the empty ones left out. A call is a piece of its
    own."""
    found: list[Piece] = []
    texts: list[list[str]] = []
    for piece in pieces:
        if piece.kind != "call" and found and (found[-1].kind, found[-1].index) == (piece.kind, piece.index):
            texts[-1].append(piece.text)
        elif piece.text:
            found.append(piece)
            texts.append([piece.text])
    return [replace(piece, text="".join(parts).replace(GUARD, "")) for piece, parts in zip(found, texts, strict=True)]
