"""A bare `tokenizer.model` through sentencepiece."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from minillm.guard.files import read_bytes
from minillm.guard.parsing import reading, refusal

MAX_BYTES = 64_000_000
MAX_PIECE = 512  # bytes; those of blanks in Gemma have 93
MAX_REPLACEMENT = 64  # bytes that a character may become: 33 in NFKC. Each of them may begin a piece.
MAX_ADDED = 10_000  # tokens, that a text is split at
MAX_ADDED_BYTES = 400_000
FATAL = 3  # of sentencepiece's levels
PIECE, NORMALIZER, DENORMALIZER, CHARSMAP = 1, 3, 5, 2  # fields of sentencepiece_model.proto


class SentencePieceBackend:
    """A Llama-style SentencePiece model. `added` are tokens that stand for themselves wherever they occur in a text; a
    text that skips special tokens leaves out those with an id in `special` and the model's own control tokens.

    With `legacy` the text behind such a token gets SentencePiece's dummy space in front, as the first text does.
    """

    def __init__(self, path: Path, added: dict[str, int], special: set[int], legacy: bool, adds_bos: bool):
        try:
            import sentencepiece
        except ImportError:
            raise ValueError(
                f"{path}: a SentencePiece model needs sentencepiece: pip install -e '.[spm]' in the clone"
            ) from None
        self.path = path
        data = read_bytes(path, MAX_BYTES)
        with reading(path, "not a SentencePiece model"):
            _check(data)
            sentencepiece.SetMinLogLevel(FATAL)  # what it says of errors, it raises too
            self.model = sentencepiece.SentencePieceProcessor()
            self.model.LoadFromSerializedProto(data)
            controls = {
                self.model.id_to_piece(i): i for i in range(self.model.get_piece_size()) if self.model.is_control(i)
            }
        self.added = {**controls, **added}
        size = sum(map(len, self.added))
        if len(self.added) > MAX_ADDED or size > MAX_ADDED_BYTES:
            what = f"{len(self.added):,} added tokens of {size:,} characters"
            raise ValueError(f"{path}: {what}, more than the {MAX_ADDED:,} of {MAX_ADDED_BYTES:,} that may be added")
        self.names = {i: token for token, i in self.added.items()}
        self.special = special | set(controls.values())
        self.size = max([self.model.get_piece_size() - 1, *self.names]) + 1
        self.legacy = legacy
        self.bos = [self.model.bos_id()] if adds_bos and self.model.bos_id() >= 0 else []
        longest_first = sorted(self.added, key=len, reverse=True)
        self.pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    def encode(self, text: str, special: bool) -> list[int]:
        try:
            return self._encode(text, special)
        except BaseException as error:
            raise refusal(error, self.path, "cannot encode this text", "is it valid UTF-8?") from None

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        try:
            return self._decode(ids, skip_special)
        except BaseException as error:
            raise refusal(error, self.path, "cannot decode these ids") from None

    def _encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = []
        for i, piece in enumerate(self.pattern.split(text) if self.pattern else [text]):
            if piece in self.added:
                ids.append(self.added[piece])
            elif piece:
                ids.extend(self._plain(piece, first=i == 0))
        return [*self.bos, *ids] if special else ids

    def _plain(self, text: str, first: bool) -> list[int]:
        if first or self.legacy:
            return self.model.encode(text)
        guard = self.model.encode("\n")  # swallows the dummy space, then is cut off again
        return self.model.encode("\n" + text)[len(guard) :]

    def _decode(self, ids: Sequence[int], skip_special: bool) -> str:
        text, run = "", []
        for i in [*ids, None]:
            if i is not None and i not in self.names:
                if 0 <= i < self.model.get_piece_size():  # a padded vocabulary has ids that are no piece
                    run.append(i)
                continue
            text += self.model.decode(run) if run else ""
            run = []
            text += self.names[i] if i is not None and not (skip_special and i in self.special) else ""
        return text

    def id_of(self, token: str) -> int | None:
        if token in self.added:
            return self.added[token]
        with reading(self.path, f"cannot look up the token {token[:60]!r}"):
            found = self.model.piece_to_id(token)
        return None if found == self.model.unk_id() else found

    def name_of(self, token: int) -> str | None:
        inside = 0 <= token < self.model.get_piece_size()
        return self.names.get(token, self.model.id_to_piece(token) if inside else None)


def _check(data: bytes) -> None:
    """Raises ValueError for pieces, or characters' replacements, that are so long that a short text takes long."""
    for number, start, end in _fields(data, 0, len(data)):
        if number == PIECE and end - start > MAX_PIECE:
            raise ValueError(f"a piece of {end - start:,} bytes, more than the {MAX_PIECE:,} allowed")
        if number in (NORMALIZER, DENORMALIZER):
            for inner, begin, close in _fields(data, start, end):
                if inner == CHARSMAP and close > begin:
                    _check_charsmap(data[begin:close])


def _check_charsmap(charsmap: bytes) -> None:
    """A map of characters: the size of a trie in 4 bytes, the trie, and texts that end with NUL."""
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 4 + size or size % 4:
        raise ValueError(f"a map of characters of {len(charsmap):,} bytes whose trie is said to have {size:,}")
    if (longest := max(map(len, charsmap[4 + size :].split(b"\0")))) > MAX_REPLACEMENT:
        raise ValueError(f"a character that becomes {longest:,} bytes, more than the {MAX_REPLACEMENT} allowed")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of the fields of a protobuf message that have a length, but for short pieces."""
    while at < end:
        if data[at] == PIECE << 3 | 2 and at + 1 < end and data[at + 1] < 128:
            at += 2 + data[at + 1]
            continue
        tag, at = _varint(data, at)
        kind = tag & 7
        size, at = _varint(data, at) if kind in (0, 2) else ({1: 8, 5: 4}.get(kind, end), at)
        if kind == 2:
            yield tag >> 3, at, min(at + size, end)
        at += size if kind != 0 else 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value, at + i + 1
    raise ValueError("a number of more than ten bytes")
