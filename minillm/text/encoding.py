"""The tokenizer of a tokenizer.json: what encodes and decodes, in this process or in one of its own (`guard/child.py`).

Nothing here is bounded: `jsonbackend.py` decides where it may run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any

ADDED = b'"added_tokens"'
FEW = 20_000  # tokens, whose ids are all looked at in a millisecond or ten
LOOKED_AT = (1 << 18, 1 << 23)  # bytes of the list
Added = list[tuple[str, int | None, dict[str, bool]]]  # text, stated id and flags


class Encoding:
    """A tokenizer as the bytes of its file describe it, and tokens to add behind its own. A token whose stated id that
    does not give is left out, and named in `remarks`. Raises what the tokenizers library raises."""

    def __init__(self, data: bytes, added: Added):
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_buffer(data)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.size = self.tokenizer.get_vocab_size()
        self.remarks = [*self._shared_ids(), *self._renumbered(data)]
        known = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        odd, new = [], []
        for text, stated, flags in added:
            if not text or text in known:
                continue
            found = self.tokenizer.token_to_id(text)
            given = self.size if found is None else found
            if stated is not None and stated != given:
                odd.append(f"{text!r} ({stated}, here {given})")
                continue
            known.add(text)
            self.size += found is None
            new.append(tokenizers.AddedToken(text, **flags))
        self.tokenizer.add_tokens(new)
        what = "added tokens left out, as the ids stated beside tokenizer.json do not follow its own"
        self.remarks += [f"{what}: {', '.join(odd)}"] if odd else []

    def _shared_ids(self) -> list[str]:
        """Ids that several tokens have: only the last of them is ever decoded."""
        looked_at = range(self.size) if self.size <= FEW else (self.size - 1,)
        if None not in map(self.tokenizer.id_to_token, looked_at):
            return []  # as many ids as tokens; of many tokens the last would lack
        by_id: dict[int, list[str]] = {}
        for text, i in self.tokenizer.get_vocab().items():
            by_id.setdefault(i, []).append(text)
        shared = [f"{i} {sorted(texts)[:3]}" for i, texts in sorted(by_id.items()) if len(texts) > 1]
        return [f"tokenizer.json gives ids to several tokens: {', '.join(shared[:8])}"] if shared else []

    def _renumbered(self, data: bytes) -> list[str]:
        """Added tokens to which the library gives other ids than their entries in tokenizer.json state."""
        stated = [(each.get("content"), each.get("id")) for each in added_tokens(data) if isinstance(each, dict)]
        found = [(text, i, self.tokenizer.token_to_id(text)) for text, i in stated if isinstance(text, str) and text]
        odd = [f"{text!r} ({i}, here {here})" for text, i, here in found if i != here]
        return [f"tokenizer.json states other ids of added tokens than it gives: {', '.join(odd[:8])}"] if odd else []

    def encode(self, text: str, special: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def id_of(self, token: str) -> int | None:
        return self.tokenizer.token_to_id(token)

    def name_of(self, token: int) -> str | None:
        return self.tokenizer.id_to_token(token)


def added_tokens(data: bytes) -> list[Any]:
    """The list of that name in a tokenizer.json, which is not read for it as a whole."""
    at = data.find(ADDED)
    while at >= 0 and data[at + len(ADDED) :].lstrip()[:1] != b":":
        at = data.find(ADDED, at + 1)
    for size in LOOKED_AT if at >= 0 else ():
        text = data[at + len(ADDED) : at + size].decode("utf-8", "ignore").lstrip(" \t\r\n:")
        with contextlib.suppress(ValueError, RecursionError):
            found, _ = json.JSONDecoder().raw_decode(text)
            return found if isinstance(found, list) else []
    return []


def prepare(given: tuple[bytes, Added]) -> None:
    global _encoding
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoding = Encoding(*given)


def answer(name: str, *arguments: Any) -> Any:
    return getattr(_encoding, name)(*arguments) if name != "about" else (_encoding.size, _encoding.remarks)


_encoding: Encoding
