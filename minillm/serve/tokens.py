"""Single tokens as APIs show them: a text, and the bytes that it is, which of a part of a character are no text."""

from __future__ import annotations

from pathlib import Path

from minillm.guard.files import is_there
from minillm.guard.jsonfile import read_json
from minillm.text.added import listed
from minillm.text.pieces import BYTE, BYTE_LEVEL
from minillm.text.spm import SentencePieceBackend
from minillm.text.tokenizer import Tokenizer


class Tokens:
    """Texts and bytes of ids, remembered."""

    def __init__(self, tokenizer: Tokenizer | None):
        self.tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        self._before = tokenizer.encode("a", special=False) if tokenizer else []

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to a text. Decoders strip the space before a first word: it is decoded behind another."""
        if token not in self._known:
            self._known[token] = self._bytes(token)
        return self._known[token]

    def label(self, token: int) -> str:
        """A text that is no other token's: bytes that are part of a character spelled out, as OpenAI does."""
        raw = self.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _bytes(self, token: int) -> bytes:
        if self.tokenizer is None:
            return f"#{token}".encode()
        decode = self.tokenizer.decode
        known, whole = (decode(ids, skip_special=False) for ids in (self._before, [*self._before, token]))
        text = whole[len(known) :] if whole.startswith(known) else decode([token], skip_special=False)
        if "\ufffd" not in text:
            return text.encode("utf-8", "replace")
        name = self.tokenizer.backend.name_of(token) or ""
        if found := BYTE.fullmatch(name):
            return bytes.fromhex(found[1])
        if name and all(each in BYTE_LEVEL for each in name):
            return bytes(BYTE_LEVEL[each] for each in name)
        return text.encode("utf-8", "replace")


def added(folder: Path, tokenizer: Tokenizer | None) -> dict[str, bool]:
    """Tokens that are no part of a text by their names, and whether they are special: such no answer shows."""
    if tokenizer is None:
        return {}
    found = {text: bool(flags.get("special")) for text, _, flags in listed(folder, tokenizer.config)}
    if isinstance(tokenizer.backend, SentencePieceBackend):
        found |= {name: True for each in tokenizer.backend.special if (name := tokenizer.backend.name_of(each))}
    elif is_there(folder / "tokenizer.json"):
        given = read_json(folder / "tokenizer.json").get("added_tokens") or []
        found |= {each["content"]: bool(each.get("special")) or found.get(each["content"], False) for each in given}
    return {name: special for name, special in found.items() if name.strip()}
