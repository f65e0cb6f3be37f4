"""Grammars at work: llguidance with a tokenizer's vocabulary, compiled grammars that are kept, and guides made of them.

Masks have a bit for each token, the lowest of the first word for token 0, as llguidance writes them.
"""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from minillm.guard.screen import printable
from minillm.text.tokenizer import Tokenizer

KEPT = 64  # grammars of one tokenizer
MAX_WORDS = 300  # characters of a refusal


class Guide:
    """Says token by token what may come next in one answer. Raises ValueError for a token that may not come, and when
    a limit of llguidance is met."""

    def __init__(self, matcher: Any, size: int):
        self.matcher = matcher
        self._mask = np.zeros((size + 31) // 32, dtype=np.int32)

    def fill(self, mask: np.ndarray) -> None:
        """Write which tokens may come next: int32 [at least ceil(vocabulary / 32)], further tokens may not."""
        self.matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check("no mask of what may come next")
        words = min(len(mask), len(self._mask))
        mask[:words], mask[words:] = self._mask[:words], 0

    def advance(self, token: int) -> None:
        if not self.matcher.consume_token(token):
            self._check(f"token {token} may not come here")
            raise ValueError(f"token {token} may not come here")

    def rewind(self, count: int) -> None:
        """Take back the last tokens."""
        if count:
            self.matcher.rollback(count)
            self._check(f"{count} tokens cannot be taken back")

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of these tokens may follow, one after the other."""
        count = int(self.matcher.validate_tokens(list(tokens)))
        self._check("drafted tokens cannot be looked at")
        return count

    def _check(self, what: str) -> None:
        if self.matcher.is_error():
            raise ValueError(f"{what}: {_line(self.matcher.get_error())}")


class Vocabulary:
    """A tokenizer as llguidance has it, and the grammars compiled for it."""

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int]):
        llguidance = _library()
        encoding: Any = getattr(tokenizer.backend, "encoding", None)
        if not hasattr(encoding, "tokenizer"):
            raise ValueError("grammars need a tokenizer.json that the tokenizers library reads in this process")
        self.size, self._name_of = tokenizer.backend.size, tokenizer.backend.name_of
        text = encoding.tokenizer.to_str()
        self.tokens = llguidance.LLTokenizer(text, n_vocab=self.size, eos_token=sorted(ends))
        self._matcher = llguidance.LLMatcher
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def guide(self, lark: str, schemas: Mapping[str, Any]) -> Guide:
        """A guide of a grammar. Raises ValueError that names which of the schemas in it is at fault, and why."""
        key = hashlib.sha256(lark.encode()).digest()
        with self._lock:
            matcher = self._kept.get(key)
        if matcher is None:
            matcher = self._matcher(self.tokens, lark, log_level=0)
            if matcher.is_error():
                raise ValueError(self._reason(matcher.get_error(), schemas))
            Guide(matcher.deep_copy(), self.size).fill(np.zeros((self.size + 31) // 32, dtype=np.int32))
        with self._lock:
            self._kept[key] = matcher
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return Guide(matcher.deep_copy(), self.size)

    def _reason(self, error: str, schemas: Mapping[str, Any]) -> str:
        for where, schema in schemas.items():
            found = self._matcher(self.tokens, "start: %json " + json.dumps(schema), log_level=0)
            if found.is_error():
                return f"{where}: {_line(found.get_error())}; leave it out"
        return f"no grammar of this request: {_line(error)}; ask for less"

    def literals(self, text: str) -> list[str]:
        """A text as what stands in a grammar: strings, and special tokens by id."""
        found, rest = [], text
        for token in self.tokens.tokenize_bytes(text.encode(), parse_special=True):
            name = self._name_of(token) if self.tokens.is_special_token(token) else None
            if name and name in rest:
                before, _, rest = rest.partition(name)
                found += [*_string(before), f"<[{token}]>"]
        return [*found, *_string(rest)]


def _string(text: str) -> list[str]:
    return [json.dumps(text, ensure_ascii=False)] if text else []


_made: weakref.WeakKeyDictionary[Tokenizer, dict[tuple[int, ...], Vocabulary]] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def vocabulary(tokenizer: Tokenizer | None, ends: Collection[int]) -> Vocabulary:
    """That of a tokenizer, made once. `ends` are the ids that end an answer, by default its own. Raises ValueError."""
    if tokenizer is None:
        raise ValueError("grammars need a tokenizer, the model has none; leave out response_format and tool_choice")
    chosen = tuple(sorted(ends)) or tuple(token for token in (tokenizer.eos_id,) if token is not None)
    if not chosen:
        raise ValueError("grammars need a token that ends an answer, the tokenizer has none; name it as eos_token")
    with _making:
        known = _made.setdefault(tokenizer, {})
        if chosen not in known:
            known[chosen] = Vocabulary(tokenizer, chosen)
        return known[chosen]


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ValueError(
            "response_format and tool_choice need llguidance: pip install -e '.[serve]' in the clone"
        ) from None
    return llguidance


def _line(text: str) -> str:
    """An error of the library as one line, without its picture of the grammar."""
    lines = [line.strip() for line in text.replace("failed to compile JSON schema: ", "").splitlines()]
    kept = [line for line in lines if line and not line[0].isdigit() and line.strip("^ ") != ""] or lines
    first = lines[0].partition(": ")[2] if lines and lines[0].startswith("at ") else kept[0] if kept else "no reason"
    more = next((line for line in lines if line.startswith("error: ")), "")
    return printable(" ".join(filter(None, (first, more))))[:MAX_WORDS]
