"""Which tokenizer.json may run in this process: those whose every step is known to end soon, as published ones are.

A tokenizer.json is a program: normalizers may double a text forty times, a regular expression may try for ever, and the
library, which is in Rust, aborts where memory lacks. Its steps are read twice: in the file's bytes what building it
already runs, then in the library's own description of what was built. What is not in the tables here is not refused;
it runs where it can do no harm (`encoding.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

MAX_STEPS = 64  # components, with those in sequences
MAX_GROWTH = 64.0  # bytes that one byte may become
MAX_AROUND = 64  # ids put around a text
MAX_WORD = 1000  # characters that WordPiece looks at together
MAX_STRIPPED = 16
STRIDE = 2048  # bytes: no token is of twice as many

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (  # words of at most one change of case, the ends of contractions with them or not
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+END"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*END"
)
# Those of published tokenizers whose time is proportional to the text. All are scanned to an end without going back
# further than a run of letters or blanks, and take all of a run that they have looked at.
PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    *(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_SPACES}"
        for digits in (r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r"\p{N}{1,2}")
    ),
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_SPACES}",
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    *(
        _CASED.replace("END", end) + rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+{behind}{_SPACES}"
        for end in ("", f"{_CONTRACTIONS}?")
        for digits in (r"\p{N}", r"\p{N}{1,3}")
        for behind in (r"[\r\n/]*", r"[\r\n]*")
    ),
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    "\r\n"
    r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["
    "\r\n"
    r"]*|\s*["
    "\r\n"
    r"]+|\s+(?!\S)|\s+",
    "[0-9][0-9][0-9]",
    "[\r\n]",
    r"\p{N}{1,3}",
}
# Some characters in a row, perhaps with a blank before them: nothing to go back to.
RUN = re.compile(r"(\\s\?| \?)?(\[[^\[\]\\&]+\]|\\[dD]|\\[pP]\{\w+\})[+]?")
# SHA-256 of the maps that sentencepiece comes with: nmt_nfkc, nfkc, nmt_nfkc_cf and nfkc_cf.
CHARSMAPS = {
    "22342cc048ea558ae308e80926aa93616b88653ddf6f2bb26e3cf24eae8972b8",
    "de92dc72e0a889f99b2625eb6fab03e9f87c436402cb4be61f1b05003bec705e",
    "f0d7aebc9f5b7ef32a4ed371eab715724996ed886a20b24d48e5a76c47c5e652",
    "916ce70b049ab7ff559a1853fdac0a02f9077e76e9aa2a99fb7beff163cfc5ad",
}

GROWTH = {  # of text, by kind
    "NFC": 3.0, "NFD": 3.0, "NFKC": 11.0, "NFKD": 11.0, "Lowercase": 1.5, "StripAccents": 1.0, "BertNormalizer": 5.0,
    "ByteLevel": 3.0, "Metaspace": 6.0, "Digits": 1.0, "Punctuation": 1.0, "Whitespace": 1.0, "WhitespaceSplit": 1.0,
    "BertPreTokenizer": 1.0, "ByteFallback": 1.0, "Fuse": 1.0, "WordPiece": 1.0, "Precompiled": 11.0,
}  # fmt: skip
PARTS = ("normalizers", "pretokenizers", "processors", "decoders")


def unusual_bytes(data: bytes) -> str | None:
    """What in a file may be more than building it should meet here, or None. It takes two milliseconds a megabyte."""
    if _hides_letters(data):
        return "it spells letters as escapes"
    maps = []
    for start, end in _values(data, b"Regex"):
        if not is_known(pattern := _text(data[start:end])):
            return f"its pattern {pattern[:60]!r} is not one of the known ones"
    for start, end in _values(data, b"precompiled_charsmap"):
        if hashlib.sha256(data[start:end].strip(b'"')).hexdigest() not in CHARSMAPS:
            return "its map of characters is not one of the known ones"
        maps.append(range(start - STRIDE, end))
    for start, end in _values(data, b"continuing_subword_prefix"):
        prefix = data[start:end]
        if prefix not in (b"null", b'""') and (prefix != b'"##"' or b'"merges"' in data):
            return "its model has an unusual prefix"
    for at in range(0, len(data) - STRIDE, STRIDE):
        first = data.find(b'"', at, at + STRIDE)
        if first >= 0 and data[first - 1 : first] != b"\\":
            continue  # the end of a text or its beginning: in one text every quote has a backslash before it
        quotes, escaped = data.count(b'"', at, at + STRIDE), data.count(b'\\"', max(at - 1, 0), at + STRIDE)
        if quotes == escaped and not any(at in each for each in maps):
            return "it has very long texts"
    return None


def unusual(tokenizer: Any) -> str | None:
    """What a tokenizer does that is not known to end soon, or None."""
    growth, steps = 1.0, 0
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        component = getattr(tokenizer, part)
        growth = 1.0 if part in ("post_processor", "decoder") else growth
        for step in _steps(json.loads(component.__getstate__())) if component is not None else ():
            factor = _growth(part, step)
            if factor is None:
                return f"its {part.replace('_', '-')} {step['type']} is an unusual one"
            growth, steps = growth * factor, steps + 1
            if growth > MAX_GROWTH or steps > MAX_STEPS:
                return f"its {part.replace('_', '-')} may make a text {growth:.0f} times as long in {steps} steps"
    added = tokenizer.get_added_tokens_decoder().values()
    if any(x.content.isspace() for x in added) and any(x.lstrip for x in added) and any(x.rstrip for x in added):
        return "its added tokens take blanks, which are added tokens too, from both sides"
    return _unusual_model(tokenizer.model)


def is_known(pattern: str) -> bool:
    return pattern in PATTERNS or RUN.fullmatch(pattern) is not None


def _growth(part: str, step: dict[str, Any]) -> float | None:
    kind = step["type"]
    if part == "post_processor":
        around = _around(step)
        return 1.0 if around is not None and around <= MAX_AROUND else None
    if kind in ("Replace", "Split"):
        pattern, content = step["pattern"], step.get("content", "")
        if "String" not in pattern:
            return 1.0 if kind == "Split" and is_known(pattern.get("Regex", "")) else None
        size, made = len(pattern["String"].encode()), len(content.encode())
        lost = part == "normalizer" and not made  # over which the library stumbles
        return max(1.0, made / size) if size and not lost else None
    if kind == "Prepend":
        return 1.0 + len(step["prepend"].encode()) if step["prepend"] else None
    if kind == "Strip":
        return 1.0 if part == "decoder" and step["stop"] == 0 and step["start"] <= MAX_STRIPPED else None
    return GROWTH.get(kind)


def _around(step: dict[str, Any]) -> int | None:
    """How many ids a post-processor puts around a text; None where that cannot be said."""
    if step["type"] == "ByteLevel":
        return 0
    if step["type"] in ("BertProcessing", "RobertaProcessing"):
        return 2
    if step["type"] != "TemplateProcessing":
        return None
    table, count, texts = step["special_tokens"], 0, 0
    for item in step["single"]:
        if "Sequence" in item and item["Sequence"]["id"] == "A":
            texts += 1
        elif "SpecialToken" in item and item["SpecialToken"]["id"] in table:
            count += len(table[item["SpecialToken"]["id"]]["ids"])
        else:
            return None
    return count if texts == 1 else None


def _unusual_model(model: Any) -> str | None:
    kind = type(model).__name__
    if kind == "BPE" and not model.dropout and len(model.end_of_word_suffix or "") <= MAX_STRIPPED:
        return None
    if kind == "WordPiece" and model.max_input_chars_per_word <= MAX_WORD:
        return None
    if kind == "WordLevel" or (kind == "Unigram" and not model.alpha and not _has_odd_scores(model)):
        return None
    return f"its model {kind} has unusual settings"


def _has_odd_scores(model: Any) -> bool:
    """No id for what is unknown, or scores whose sums are no numbers."""
    state = bytes(model.__getstate__())
    head = state[: state.find(b'"vocab"')] + state[state.rfind(b"]") :]
    return b'"unk_id":null' in head or (b"e+" in state and re.search(rb"\de\+\d+\]", state) is not None)


def _steps(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = next((step[name] for name in PARTS if name in step), None)
    if parts is None:
        yield step
    for each in parts or ():
        yield from _steps(each)


def _values(data: bytes, key: bytes) -> Iterator[tuple[int, int]]:
    """Where the values of a key lie, texts with their quotes. A key with a number is a word of the vocabulary."""
    pattern = re.compile(rb'"\s*:\s*("(?:[^"\\]|\\.)*"|[^\s,}\]]*)')
    at = data.find(key)
    while at >= 0:
        if (found := pattern.match(data, at + len(key))) and not found[1].isdigit():
            yield found.span(1)
        at = data.find(key, at + 1)


def _text(literal: bytes) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:
        return literal.decode("utf-8", "replace")


def _hides_letters(data: bytes) -> bool:
    """Whether a letter, of a key perhaps, stands there as \\u0061 does."""
    at = data.find(b"\\u00")
    while at >= 0:
        code = data[at + 4 : at + 6].lower()
        before = data[max(0, at - 64) : at]
        escaped = (len(before) - len(before.rstrip(b"\\"))) % 2
        if not escaped and code[:1] in b"4567" and code not in (b"7f", b"60", b"40"):
            return True
        at = data.find(b"\\u00", at + 4)
    return False
