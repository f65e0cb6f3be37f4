"""Vocabularies that are a list of byte sequences in the order in which they are made, as tokenizer.json.

    tekken.json       Mistral's: {"config": {"pattern", "default_vocab_size", "default_num_special_tokens"},
                      "vocab": [{"rank", "token_bytes" in base64}, …], "special_tokens": [{"rank", "token_str"}, …]};
                      special tokens have the first ids, the others theirs behind them
    tokenizer.model   of Llama 3, as tiktoken has it: a line for each token, its bytes in base64 and its rank; special
                      tokens stand elsewhere and have the ids behind

Of a piece of text, the two neighbours that make the token of the lowest rank are joined first, and a piece that is a
token stays whole. The tokenizers library goes by a list of pairs: it gets all pairs that make a token, by its rank.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.text.pieces import BYTE_LEVEL

MAX_BYTES = 64_000_000
MAX_TOKENS = 2**20
MAX_TOKEN = 512  # bytes: those of blanks have 83
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} 0\r?\n")  # how such a file begins
LETTERS = {byte: letter for letter, byte in BYTE_LEVEL.items()}
# Of files before version 8, which do not list them.
TEKKEN_SPECIAL = """<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]
    [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]
    [TOOL_CONTENT]""".split()
BOS, EOS = "<s>", "</s>"


def is_tiktoken(data: bytes) -> bool:
    """Whether a tokenizer.model is a list of byte sequences and no SentencePiece model."""
    return TIKTOKEN.match(data) is not None


def from_tiktoken(data: bytes, pattern: str, special: Sequence[str]) -> dict[str, Any]:
    """tokenizer.json of Llama 3's tokenizer.model; `special` tokens come behind, and a text begins with the first."""
    lines = [line.split() for line in data.splitlines() if line]
    if len(lines) > MAX_TOKENS or any(len(line) != 2 or line[1] != b"%d" % i for i, line in enumerate(lines)):
        raise ValueError("tokenizer.model: not a list of tokens and their ranks in order; download it again")
    ranks = [_bytes(line[0].decode("latin-1"), i) for i, line in enumerate(lines)]
    places = {token: len(ranks) + i for i, token in enumerate(special)}
    return _tokenizer(ranks, 0, pattern, places, special[0])


def from_tekken(values: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json of Mistral's tekken.json. Raises ValueError for a file that is not as it must be."""
    settings, vocabulary = values.get("config"), values.get("vocab")
    if not isinstance(settings, dict) or not isinstance(vocabulary, list):
        raise ValueError("tekken.json: no config or no vocab; download it again")
    pattern, size, count = (settings.get(f"{key}") for key in ("pattern", "default_vocab_size", SPECIALS))
    if not isinstance(pattern, str) or type(size) is not int or type(count) is not int or not 0 <= count < size:
        raise ValueError(f"tekken.json: config lacks pattern, default_vocab_size or {SPECIALS}; download it again")
    if size > MAX_TOKENS or size - count > len(vocabulary):
        raise ValueError(f"tekken.json: {size:,} tokens, of which {len(vocabulary):,} are listed and {count:,} special")
    ranks = [_entry(each, i) for i, each in enumerate(vocabulary[: size - count])]
    return _tokenizer(ranks, count, pattern, _special(values.get("special_tokens"), count), BOS)


SPECIALS = "default_num_special_tokens"


def _special(listed: Any, count: int) -> dict[str, int]:
    """All special tokens; those without a name are called by their id, as in mistral-common."""
    pairs: list[tuple[Any, Any]] = list(enumerate(TEKKEN_SPECIAL))
    if listed is not None:
        if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
            raise ValueError("tekken.json: special_tokens is no list of objects; download it again")
        pairs = [(each.get("rank"), each.get("token_str")) for each in listed]
    if any(type(i) is not int or not 0 <= i < count or not isinstance(text, str) for i, text in pairs):
        raise ValueError(f"tekken.json: special_tokens are not texts with ranks from 0 to {count - 1}")
    named = dict(pairs)
    made = {named.get(i, f"<SPECIAL_{i}>"): i for i in range(count)}
    if len(named) != len(pairs) or len(made) != count or BOS not in made:
        raise ValueError(f"tekken.json: special_tokens has a rank or a text twice, or lacks {BOS}")
    return made


def _entry(entry: Any, rank: int) -> bytes:
    if not isinstance(entry, dict) or entry.get("rank") != rank or not isinstance(entry.get("token_bytes"), str):
        raise ValueError(f"tekken.json: entry {rank} of vocab is not a token of rank {rank}; download it again")
    return _bytes(entry["token_bytes"], rank)


def _bytes(text: str, rank: int) -> bytes:
    try:
        made = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        made = b""
    if not 0 < len(made) <= MAX_TOKEN:
        raise ValueError(f"token {rank} is {text[:40]!r}, expected 1 to {MAX_TOKEN} bytes in base64")
    return made


def _tokenizer(
    ranks: Sequence[bytes], first: int, pattern: str, special: Mapping[str, int], bos: str
) -> dict[str, Any]:
    """`ranks` have ids from `first` on."""
    letters = ["".join(map(LETTERS.__getitem__, token)) for token in ranks]
    vocabulary = {text: first + i for i, text in enumerate(letters)}
    if len(vocabulary) != len(ranks):
        raise ValueError("a token stands there twice; download the vocabulary again")
    if both := sorted(special.keys() & vocabulary.keys()):
        raise ValueError(f"the special token {both[0]!r} is also the name of a plain one, which is not supported")
    pairs = [
        [text[:at], text[at:]]
        for text in letters
        for at in range(1, len(text))
        if text[:at] in vocabulary and text[at:] in vocabulary
    ]
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for token, i in special.items()
    ]  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    text = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {
            "type": "TemplateProcessing", "single": text, "pair": [*text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [special[bos]], "tokens": [bos]}},
        },
        "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": {**vocabulary, **special}, "merges": pairs,
        },
    }  # fmt: skip


def written(tokenizer: Mapping[str, Any]) -> bytes:
    return json.dumps(tokenizer, ensure_ascii=False).encode()
