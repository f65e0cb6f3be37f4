"""Text to ids and back: `tokenizer.json` through the tokenizers library, or a bare `tokenizer.model` through
sentencepiece; and `TextStream`, which turns a stream of ids into text that never holds half a character.

The ids of the folder's own files are the truth: nothing is inferred from the model's family.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from minillm.guard import memory
from minillm.guard.files import is_there
from minillm.guard.jsonfile import read_json
from minillm.text.added import beside_model, listed, text_of
from minillm.text.jsonbackend import JsonBackend
from minillm.text.spm import SentencePieceBackend

UNASKED = 1_000_000  # characters
BYTES_A_CHARACTER = 250  # that encoding takes, measured with tokenizers 0.23
HEAD, SLACK = 8, 64  # characters a token, and tokens


class Backend(Protocol):
    """What `tokenizer.json` and `tokenizer.model` have in common. All raise ValueError for what they have no answer to,
    and bound what a file can ask for."""

    size: int  # of the vocabulary

    def encode(self, text: str, special: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...

    def id_of(self, token: str) -> int | None: ...

    def name_of(self, token: int) -> str | None: ...


class Tokenizer:
    """The tokenizer of a checkpoint folder, and what tokenizer_config.json says of special tokens.

    Raises ValueError when the folder has no tokenizer, or one that cannot be read.
    """

    def __init__(self, folder: Path):
        path = folder / "tokenizer_config.json"
        self.config: dict[str, Any] = read_json(path) if is_there(path) else {}
        path = folder / "special_tokens_map.json"
        named = {**(read_json(path) if is_there(path) else {}), **self.config}
        # Special tokens by role, as chat templates see them: bos_token, eos_token, …
        self.special = {
            key: text for key, value in named.items() if key.endswith("_token") and (text := text_of(value))
        }
        self.remarks: list[str] = []  # what was done otherwise than the files say
        self.backend = self._backend(folder)
        alone = self.backend.encode("", special=True)  # what is put around a text: a BOS, if it is one id
        unnamed = alone[0] if len(alone) == 1 else None
        self.bos_id = self.backend.id_of(self.special["bos_token"]) if "bos_token" in self.special else unnamed
        self.eos_id = self.backend.id_of(self.special["eos_token"]) if "eos_token" in self.special else None

    def _backend(self, folder: Path) -> Backend:
        if is_there(folder / "tokenizer.json"):
            made = JsonBackend(folder / "tokenizer.json", listed(folder, self.config))
            self.remarks = made.remarks
            return made
        if is_there(folder / "tokenizer.model"):
            added, special = beside_model(folder, self.config.get("added_tokens_decoder") or {})
            legacy, adds_bos = (_flag(self.config, key) for key in ("legacy", "add_bos_token"))
            return SentencePieceBackend(folder / "tokenizer.model", added, special, legacy, adds_bos)
        raise ValueError(f"{folder}: no tokenizer.json or tokenizer.model; give the prompt as --prompt-ids")

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; with `special` what the tokenizer puts around a text, and never a BOS twice.

        A rendered chat template holds its special tokens as text: encode it with `special=False`. Raises ValueError
        where that would take more memory than there is.
        """
        if len(text) > UNASKED:
            memory.refuse(len(text) * BYTES_A_CHARACTER, f"making tokens of {len(text):,} characters", "give less text")
        ids = self.backend.encode(text, special)
        leading = next((at for at, i in enumerate(ids) if i != self.bos_id), len(ids))
        return ids[leading - 1 :] if special and leading > 1 else ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.backend.decode(ids, skip_special)

    def refuse_too_long(self, text: str, context: int) -> None:
        """Raises ValueError where the beginning of a text alone has more tokens than a context, so that the whole need
        not be made tokens of to know. What follows can change the last tokens of a beginning only."""
        size = HEAD * context
        while len(text) > 2 * size:
            count = len(self.encode(text[:size], special=False))
            if count > context + context // 4 + SLACK:
                raise ValueError(
                    f"the prompt of {len(text):,} characters has more than {count:,} tokens and the context {context}; "
                    "give less text"
                )
            size *= 4


class TextStream:
    """Ids in, text out, piece by piece; the pieces joined are the decoded whole, less half a character at its end.

    A token may hold only some bytes of a character; they decode to U+FFFD, which is held back until it is complete.
    (Where the bytes of ids form no UTF-8 at all, a decoder may see a whole run of them otherwise than its parts.)
    Each piece is what the decoded window of ids gained: the window restarts at every piece, so that the cost per
    token does not grow, but one piece later than the text already given, so that a decoder which strips the space
    before a text's first word strips it once.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self.ids: list[int] = []
        self.start = self.given = 0  # ids before `start` are out of the window, ids before `given` are printed

    def push(self, token: int) -> str:
        """Text that this token completes; empty while a character is incomplete."""
        self.ids.append(token)
        text = self._window(len(self.ids))
        if text.endswith("\ufffd"):
            return ""
        return self._give(text)

    def finish(self) -> str:
        """What is left when nothing more will come, but for a character that stays incomplete."""
        return self._give(self._window(len(self.ids)).rstrip("\ufffd"))

    def _window(self, end: int) -> str:
        return self.tokenizer.decode(self.ids[self.start : end], skip_special=self.skip_special)

    def _give(self, text: str) -> str:
        before = self._window(self.given)
        piece = text[len(before) :]
        if piece:
            self.start, self.given = self.given, len(self.ids)
        return piece


def stop_position(text: str, stops: Iterable[str]) -> int | None:
    """Where the first stop string in `text` begins, or None."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found) if found else None


def held_back(text: str, stops: Iterable[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


def _flag(config: dict[str, Any], key: str) -> bool:
    """Whether a setting is on, as it is where it is not given."""
    value = config.get(key)
    if value not in (True, False, None) or isinstance(value, (int, float)) != isinstance(value, bool):
        raise ValueError(f"tokenizer_config.json: {key} is {str(value)[:60]!r}, it must be true or false")
    return value is not False
