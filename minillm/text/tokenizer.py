"""Text to ids and back: `tokenizer.json` through the tokenizers library, or a bare `tokenizer.model` through
sentencepiece; and `TextStream`, which turns a stream of ids into text that never holds half a character.

The ids of the folder's own files are the truth: nothing is inferred from the model's family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from minillm.guard.jsonfile import read_json
from minillm.text.added import listed, text_of


class Backend(Protocol):
    """What `tokenizer.json` and `tokenizer.model` have in common."""

    def encode(self, text: str, special: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...

    def id_of(self, token: str) -> int | None: ...

    def name_of(self, token: int) -> str | None: ...


class _JsonBackend:
    """`tokens` are those of the files beside tokenizer.json. Its own entries keep their ids; what it lacks is added
    behind them. A token whose stated id that does not give is left out, and named in `remarks`."""

    def __init__(self, path: Path, tokens: list[tuple[str, int | None, dict[str, bool]]]):
        import tokenizers

        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every fault of the file
            raise ValueError(f"{path}: not a tokenizer the tokenizers library can read ({error})") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        size = self.tokenizer.get_vocab_size()
        known = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        odd, new = [], []
        for text, stated, flags in tokens:
            if not text or text in known:
                continue
            found = self.tokenizer.token_to_id(text)
            given = size if found is None else found
            if stated is not None and stated != given:
                odd.append(f"{text!r} ({stated}, here {given})")
                continue
            known.add(text)
            size += found is None
            new.append(tokenizers.AddedToken(text, **flags))
        self.tokenizer.add_tokens(new)
        what = "added tokens left out, as the ids stated beside tokenizer.json do not follow its own"
        self.remarks = [f"{what}: {', '.join(odd)}"] if odd else []

    def encode(self, text: str, special: bool) -> list[int]:
        try:
            return self.tokenizer.encode(text, add_special_tokens=special).ids
        except Exception as error:  # a bare one again: lone surrogates, or a vocabulary without a word for it
            raise ValueError(f"the tokenizer cannot encode this text ({error}); is it valid UTF-8?") from None

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def id_of(self, token: str) -> int | None:
        return self.tokenizer.token_to_id(token)

    def name_of(self, token: int) -> str | None:
        return self.tokenizer.id_to_token(token)


class _SentencePieceBackend:
    """A Llama-style SentencePiece model. `added` are tokens that stand for themselves wherever they occur in a text; a
    text that skips special tokens leaves out those with an id in `special` and the model's own control tokens.

    With `legacy` the text behind such a token gets SentencePiece's dummy space in front, as the first text does.
    """

    def __init__(self, path: Path, added: dict[str, int], special: set[int], legacy: bool, adds_bos: bool):
        try:
            import sentencepiece
        except ImportError:
            raise ValueError(
                f"{path}: a SentencePiece model needs the package sentencepiece; install minillm[spm]"
            ) from None
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path}: not a SentencePiece model ({error})") from None
        controls = {
            self.model.id_to_piece(i): i for i in range(self.model.get_piece_size()) if self.model.is_control(i)
        }
        self.added = {**controls, **added}
        self.names = {i: token for token, i in self.added.items()}
        self.special = special | set(controls.values())
        self.legacy = legacy
        self.bos = [self.model.bos_id()] if adds_bos and self.model.bos_id() >= 0 else []
        longest_first = sorted(self.added, key=len, reverse=True)
        self.pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    def encode(self, text: str, special: bool) -> list[int]:
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

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
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
        found = self.model.piece_to_id(token)
        return None if found == self.model.unk_id() else found

    def name_of(self, token: int) -> str | None:
        inside = 0 <= token < self.model.get_piece_size()
        return self.names.get(token, self.model.id_to_piece(token) if inside else None)


class Tokenizer:
    """The tokenizer of a checkpoint folder, and what tokenizer_config.json says of special tokens.

    Raises ValueError when the folder has no tokenizer, or one that cannot be read.
    """

    def __init__(self, folder: Path):
        path = folder / "tokenizer_config.json"
        self.config: dict[str, Any] = read_json(path) if path.is_file() else {}
        path = folder / "special_tokens_map.json"
        named = {**(read_json(path) if path.is_file() else {}), **self.config}
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
        if (folder / "tokenizer.json").is_file():
            made = _JsonBackend(folder / "tokenizer.json", listed(folder, self.config))
            self.remarks = made.remarks
            return made
        if (folder / "tokenizer.model").is_file():
            added, special = _added_tokens(folder, self.config.get("added_tokens_decoder") or {})
            legacy, adds_bos = (self.config.get(key) is not False for key in ("legacy", "add_bos_token"))
            return _SentencePieceBackend(folder / "tokenizer.model", added, special, legacy, adds_bos)
        raise ValueError(f"{folder}: no tokenizer.json or tokenizer.model; give the prompt as --prompt-ids")

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; with `special` what the tokenizer puts around a text, and never a BOS twice.

        A rendered chat template holds its special tokens as text: encode it with `special=False`.
        """
        ids = self.backend.encode(text, special)
        leading = next((at for at, i in enumerate(ids) if i != self.bos_id), len(ids))
        return ids[leading - 1 :] if special and leading > 1 else ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.backend.decode(ids, skip_special)


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


def _added_tokens(folder: Path, listed: Any) -> tuple[dict[str, int], set[int]]:
    """Text -> id and which ids are special, from added_tokens.json (text -> id) and from `listed`, the
    added_tokens_decoder (id -> token) of tokenizer_config.json."""
    path = folder / "added_tokens.json"
    pairs: list[tuple[Any, Any]] = list(read_json(path).items()) if path.is_file() else []
    tokens: list[tuple[Any, Any]] = list(listed.items()) if isinstance(listed, dict) else [(None, listed)]
    pairs += [(text_of(token), i) for i, token in tokens]
    for text, i in pairs:
        if not isinstance(text, str) or not str(i).isdecimal():
            raise ValueError(f"{folder}: added token {text!r} with id {i!r}, expected a text and a number")
    special = {int(i) for i, token in tokens if isinstance(token, dict) and token.get("special")}
    return {text: int(i) for text, i in pairs}, special
