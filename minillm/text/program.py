"""Which tokenizer.json may run in this process: those whose every step is known to end soon, as published ones are.

A tokenizer.json is a program: normalizers may double a text forty times, a regular expression may try for ever, and the
library, which is in Rust, aborts where memory lacks. Its steps are read twice: from the file's bytes before anything is
built, as building it runs some already; then in the library's own description of what was built. What is not in the
tables here is not refused; it runs where it can do no harm (`encoding.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from minillm.text import sections
from minillm.text.encoding import Added

MAX_STEPS = 64  # components, with those in sequences
MAX_GROWTH = 12.0  # bytes that one byte may become: Llama 2's blanks
MAX_AROUND = 64  # ids put around a text
MAX_WORK = 600  # bytes that a model looks at together, by what a byte may become: 500 for BERT
MAX_ADDED, MAX_ADDED_BYTES = 10_000, 400_000  # when normalized; Gemma 3 has 6,415 of 76,792
MAX_PIECES_BYTES = 2_500_000
MAX_NODES = 2_500_000  # of 300 bytes when built; Gemma 3 has 1.3 million
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
# The same but on runs of blanks, over each of which they go once for every blank in it (DeepSeek-V2).
QUADRATIC = {r"\s+$"}
BLANKS, FEW_BLANKS = 1 << 20, 1 << 14  # that may follow each other: of more the library gives up, or takes a second
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
SEQUENCES = {  # the parts in the order in which they run, and what a sequence of each is called
    "normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors",
    "decoder": "decoders",
}  # fmt: skip
JOIN_BLANKS = {"BertNormalizer", "StripAccents", "Precompiled"}  # by leaving out what stands between two
UNIGRAM, PIECE = re.compile(rb'"vocab"\s*:\s*\['), re.compile(rb'\[\s*"((?:[^"\\]|\\.)*)"\s*,\s*[-\d]')


def unusual(data: bytes, beside: Added) -> str | None:
    """What a file, with the tokens to be added to its own, asks for that is not known to end soon, or None. It takes
    some milliseconds a megabyte."""
    if (said := _unusual_bytes(data)) is not None:
        return said
    parts = sections.head(data)
    if parts is None:
        return "its parts are laid out in an unusual way"
    try:
        return unusual_parts(parts) or _unusual_added(parts, beside) or _unusual_pieces(data, parts)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return "its parts have an unusual form"


def _unusual_bytes(data: bytes) -> str | None:
    if sections.hides_letters(data):
        return "it spells letters as escapes"
    if (nodes := data.count(b",")) > MAX_NODES:
        return f"it has {nodes:,} values"
    maps = []
    for start, end in sections.values(data, b"Regex"):
        if not is_known(pattern := sections.text(data[start:end])):
            return f"its pattern {pattern[:60]!r} is not one of the known ones"
    for start, end in sections.values(data, b"precompiled_charsmap"):
        if hashlib.sha256(data[start:end].strip(b'"')).hexdigest() not in CHARSMAPS:
            return "its map of characters is not one of the known ones"
        maps.append(range(start - STRIDE, end))
    for start, end in sections.values(data, b"continuing_subword_prefix"):
        prefix = data[start:end]
        if prefix not in (b"null", b'""') and (prefix != b'"##"' or b'"merges"' in data):
            return "its model has an unusual prefix"
    for at in range(0, len(data) - STRIDE, STRIDE):
        first = data.find(b'"', at, at + STRIDE)
        if first >= 0 and data[first - 1 : first] != b"\\":
            continue  # the end of a text or its beginning: in one text every quote has a backslash before it
        quotes, escaped = data.count(b'"', at, at + STRIDE), data.count(b'\\"', max(at - 1, 0), at + STRIDE)
        if quotes == escaped and not any(at in each for each in maps):
            return "it has very long texts or lists"
    return None


def unusual_built(tokenizer: Any) -> str | None:
    """The same of what the library has made of a file, which may read it otherwise."""
    described = {part: getattr(tokenizer, part) for part in SEQUENCES}
    parts = {part: json.loads(made.__getstate__()) for part, made in described.items() if made is not None}
    return unusual_parts(parts) or _unusual_model(tokenizer.model, _whole_growth(parts))


def unusual_parts(parts: dict[str, Any]) -> str | None:
    growth, count = 1.0, 0
    for part in SEQUENCES:
        growth = 1.0 if part in ("post_processor", "decoder") else growth
        for step in _steps(part, parts.get(part)):
            factor = _growth(part, step)
            if factor is None:
                return f"its {part.replace('_', '-')} {str(step['type'])[:40]} is an unusual one"
            growth, count = growth * factor, count + 1
            if growth > MAX_GROWTH or count > MAX_STEPS:
                return f"its {part.replace('_', '-')} may make a text {growth:.0f} times as long in {count} steps"
    return _unusual_blanks(parts)


def _unusual_blanks(parts: dict[str, Any]) -> str | None:
    """Patterns take their time over blanks, and those of the text that is given are counted, not what becomes of it."""
    before = list(_steps("normalizer", parts.get("normalizer")))
    splits = list(_steps("pre_tokenizer", parts.get("pre_tokenizer")))
    patterns = {step["pattern"].get("Regex") for step in splits if step["type"] == "Split"}
    if before and patterns & QUADRATIC:
        return "its pattern is slow on blanks, which its normalizer may make"
    joins = JOIN_BLANKS & {step["type"] for step in before}
    if joins and (patterns or any(step["type"] == "ByteLevel" for step in splits)):
        return f"its normalizer {min(joins)} may make blanks for its patterns"
    return None


def _unusual_added(parts: dict[str, Any], beside: Added) -> str | None:
    """Added tokens are normalized, if they are to be, and looked for all at once, by a machine of a hundred bytes for
    each of theirs."""
    own = {each["content"]: each for each in parts.get("added_tokens") or ()}
    tokens = {content: flags for content, _, flags in beside} | own
    growth = _whole_growth({"normalizer": parts.get("normalizer")})
    # A flag that is not given is taken for the one that costs more.
    size = sum(len(text.encode()) * (growth if flags.get("normalized", True) else 1) for text, flags in tokens.items())
    if len(tokens) > MAX_ADDED or size > MAX_ADDED_BYTES:
        return f"it has {len(tokens):,} added tokens of up to {size:,.0f} bytes"
    if any(map(str.isspace, tokens)) and all(
        any(x.get(side) for x in tokens.values()) for side in ("lstrip", "rstrip")
    ):
        return "its added tokens take blanks, which are added tokens too, from both sides"
    return None


def _unusual_pieces(data: bytes, parts: dict[str, Any]) -> str | None:
    """Unigram holds its pieces as a tree of 350 bytes for each of theirs, and tries each at every character."""
    if not UNIGRAM.search(data):
        return None
    sizes = [found.end(1) - found.start(1) for found in PIECE.finditer(data)]
    work = max(sizes, default=0) * _whole_growth(parts)
    if sum(sizes) > MAX_PIECES_BYTES or work > MAX_WORK:
        return f"it has pieces of {sum(sizes):,} bytes, and up to {work:,.0f} at one character"
    return None


def _whole_growth(parts: dict[str, Any]) -> float:
    names = ("normalizer", "pre_tokenizer")
    return math.prod(_growth(part, step) or 0 for part in names for step in _steps(part, parts.get(part)))


def most_blanks(data: bytes) -> int:
    """How many blanks in a row a tokenizer without unusual bytes gets through in time."""
    patterns = (sections.text(data[start:end]) for start, end in sections.values(data, b"Regex"))
    return FEW_BLANKS if any(pattern in QUADRATIC for pattern in patterns) else BLANKS


def is_known(pattern: str) -> bool:
    return pattern in PATTERNS or pattern in QUADRATIC or RUN.fullmatch(pattern) is not None


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
        return max(1.0, made / size) if size and not (lost or _makes_blanks(part, content)) else None
    if kind == "Prepend":
        text = step["prepend"]
        return 1.0 + len(text.encode()) if text and not _makes_blanks(part, text) else None
    if kind == "Strip":
        return 1.0 if part == "decoder" and step["stop"] == 0 and step["start"] <= MAX_STRIPPED else None
    return GROWTH.get(kind)


def _makes_blanks(part: str, text: str) -> bool:
    """Of which patterns see more than there are in a text."""
    return part == "normalizer" and any(map(str.isspace, text))


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


def _unusual_model(model: Any, growth: float) -> str | None:
    kind = type(model).__name__
    if kind == "BPE" and not model.dropout and len(model.end_of_word_suffix or "") <= MAX_STRIPPED:
        return None
    if kind == "WordPiece" and model.max_input_chars_per_word * growth <= MAX_WORK:
        return None
    if kind == "WordLevel" or (kind == "Unigram" and not model.alpha and not _has_odd_scores(model)):
        return None
    return f"its model {kind} has unusual settings"


def _has_odd_scores(model: Any) -> bool:
    """No id for what is unknown, or scores whose sums are no numbers."""
    state = bytes(model.__getstate__())
    head = state[: state.find(b'"vocab"')] + state[state.rfind(b"]") :]
    return b'"unk_id":null' in head or (b"e+" in state and re.search(rb"\de\+\d+\]", state) is not None)


def _steps(part: str, step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if step is not None and step["type"] == "Sequence":
        for each in step[SEQUENCES[part]]:
            yield from _steps(part, each)
    elif step is not None:
        yield step
