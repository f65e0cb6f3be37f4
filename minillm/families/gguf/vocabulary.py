"""The vocabulary of a GGUF file as tokenizer.json and tokenizer_config.json, which `minillm/text/` reads.

    tokenizer.ggml.model         llama (SentencePiece: characters joined by score), gpt2 (bytes joined by a list),
                                 gemma4 (characters joined by a list)
    tokenizer.ggml.tokens, token_type (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte)
    tokenizer.ggml.scores        of llama; the pair that makes the token with the highest score is joined first
    tokenizer.ggml.merges        of gpt2 and gemma4
    tokenizer.ggml.pre           of gpt2; it names the rule by which texts are split first (`gguf_splits.py`)
    tokenizer.ggml.{bos,eos,unknown,padding,eot,eom}_token_id, add_bos_token, add_eos_token, add_space_prefix
    tokenizer.chat_template, tokenizer.chat_template.NAME

Other models (bert, t5, rwkv, plamo2) and rules that are not known are not read: texts are refused then, and
token ids still work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minillm.families.gguf.splits import SPLITS, WHOLE

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
PREFIX = "tokenizer.ggml."
MAX_ID = 2**31
SPACE, LETTERS = "▁", "gemma4"
ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
ENDS = ("eos", "eot", "eom")
# Tokens that end a turn in files which only name the end of a text.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<turn|>")


def files(metadata: Mapping[str, Any]) -> dict[str, Callable[[], bytes]]:
    """The files of a tokenizer, made when they are asked for; none where the vocabulary is not read (`refusal`)."""
    if refusal(metadata):
        return {}
    return {
        "tokenizer.json": lambda: _bytes(_tokenizer(metadata)),
        "tokenizer_config.json": lambda: _bytes(_settings(metadata)),
    }


def refusal(metadata: Mapping[str, Any]) -> str | None:
    """Why a vocabulary is not read, or None."""
    model, pre = metadata.get(f"{PREFIX}model"), metadata.get(f"{PREFIX}pre", "gpt-2")
    if not isinstance(model, str) or model not in MODELS:
        return f"tokenizer.ggml.model is {str(model)[:40]!r}; {', '.join(MODELS)} are read"
    if model == "gpt2" and str(pre) not in SPLITS:
        return f"tokenizer.ggml.pre is {str(pre)[:40]!r}, a rule that is not known here"
    return None


def end_ids(metadata: Mapping[str, Any]) -> list[int]:
    """The ids at which an answer ends."""
    tokens, kinds = metadata.get(f"{PREFIX}tokens"), metadata.get(f"{PREFIX}token_type")
    if not isinstance(tokens, list):
        return []
    found = [_id(metadata, name, len(tokens)) for name in ENDS]
    if isinstance(kinds, np.ndarray) and len(kinds) == len(tokens):
        controls = {tokens[i]: i for i in (kinds == CONTROL).nonzero()[0].tolist()}
        found += [controls.get(text) for text in TURN_ENDS]
    return list(dict.fromkeys(each for each in found if each is not None))


def _bytes(values: Any) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()


def _id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    value = metadata.get(f"{PREFIX}{name}_token_id")
    if value is None or value in (2**32 - 1, -1):  # no such token
        return None
    if type(value) is not int or not 0 <= value < count:
        raise ValueError(f"{PREFIX}{name}_token_id is {str(value)[:40]}, the vocabulary has {count} tokens")
    return value


def _list(metadata: Mapping[str, Any], name: str, count: int) -> np.ndarray:
    values = metadata.get(f"{PREFIX}{name}")
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise ValueError(f"{PREFIX}{name} is missing or has not one value for each of the {count} tokens")
    return values


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = metadata.get(f"{PREFIX}tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ValueError(f"{PREFIX}tokens is missing; download the file again")
    return tokens, _list(metadata, "token_type", len(tokens)).tolist()


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"{PREFIX}{name}", default)
    if not isinstance(value, bool):
        raise ValueError(f"{PREFIX}{name} is {str(value)[:40]}, expected true or false")
    return value


def _settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: the special tokens by role, and the chat template or all of them by name."""
    tokens, _ = _tokens(metadata)
    ids = {role: _id(metadata, name, len(tokens)) for name, role in ROLES.items()}
    special = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}
    template, beginning = metadata.get("tokenizer.chat_template"), "tokenizer.chat_template."
    named = {key.removeprefix(beginning): value for key, value in metadata.items() if key.startswith(beginning)}
    if odd := [each for each in (template, *named.values()) if not isinstance(each, (str, type(None)))]:
        raise ValueError(f"tokenizer.chat_template is {str(odd[0])[:40]!r}, expected a text")
    if named:
        every = {**named, **({} if template is None else {"default": template})}
        template = [{"name": name, "template": value} for name, value in every.items()]
    return special if template is None else {**special, "chat_template": template}


def _tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json."""
    tokens, kinds = _tokens(metadata)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise ValueError(f"{PREFIX}tokens has {twice[:60]!r} twice")
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind != USER}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (UNKNOWN, CONTROL, USER) and token
    ]  # fmt: skip
    parts = MODELS[metadata[f"{PREFIX}model"]](metadata, tokens, kinds, vocabulary)
    parts["post_processor"] = _around(metadata, tokens) or parts.get("post_processor")
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}


def _around(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any] | None:
    """What is put around a text: BOS in front, EOS behind."""
    model = metadata[f"{PREFIX}model"]
    begins = _flag(metadata, "add_bos_token", model == "llama" or metadata.get(f"{PREFIX}pre") in WHOLE)
    first = _id(metadata, "bos", len(tokens)) if begins or model == LETTERS else None  # whatever such a file says
    last = _id(metadata, "eos", len(tokens)) if _flag(metadata, "add_eos_token", False) else None
    if first is None and last is None:
        return None

    def put(i: int | None) -> list[dict[str, Any]]:
        return [] if i is None else [{"SpecialToken": {"id": tokens[i], "type_id": 0}}]

    def text(name: str, kind: int) -> list[dict[str, Any]]:
        return [*put(first), {"Sequence": {"id": name, "type_id": kind}}, *put(last)]

    special = {tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in (first, last) if i is not None}
    return {"type": "TemplateProcessing", "single": text("A", 0), "pair": text("A", 0) + text("B", 1),
            "special_tokens": special}  # fmt: skip


def _by_score(
    metadata: Mapping[str, Any], tokens: list[str], kinds: list[int], vocabulary: dict[str, int]
) -> dict[str, Any]:
    """SentencePiece: every way to make a token of two others, the highest score first."""
    scores = _list(metadata, "scores", len(tokens)).tolist()
    pairs = [
        (-scores[i], i, at)
        for i, token in enumerate(tokens)
        if kinds[i] in (NORMAL, USER)
        for at in range(1, len(token))
        if token[:at] in vocabulary and token[at:] in vocabulary
    ]
    prefixed = _flag(metadata, "add_space_prefix", True)
    merges = [[tokens[i][:at], tokens[i][at:]] for _, i, at in sorted(pairs)]
    return _of_letters(metadata, tokens, kinds, vocabulary, merges, prefixed)


def _by_letters(
    metadata: Mapping[str, Any], tokens: list[str], kinds: list[int], vocabulary: dict[str, int]
) -> dict[str, Any]:
    """Letters in the order of a list, over the whole of a text."""
    return _of_letters(metadata, tokens, kinds, vocabulary, _pairs(metadata), False)


def _of_letters(
    metadata: Mapping[str, Any],
    tokens: list[str],
    kinds: list[int],
    vocabulary: dict[str, int],
    merges: list[list[str]],
    prefixed: bool,
) -> dict[str, Any]:
    """A text whose blanks are letters of their own, with bytes for letters that the vocabulary has not."""
    unknown = next((tokens[i] for i, kind in enumerate(kinds) if kind == UNKNOWN), None)
    if unknown is None and (i := _id(metadata, "unknown", len(tokens))) is not None:
        unknown = tokens[i]
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    first: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}] if prefixed else []
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
    ]  # fmt: skip
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": first + spaces},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            **_BPE,
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


_BPE = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}  # fmt: skip


def _by_list(
    metadata: Mapping[str, Any], tokens: list[str], kinds: list[int], vocabulary: dict[str, int]
) -> dict[str, Any]:
    """Bytes, written as letters, in the pieces that a rule makes of a text, joined in the order of a list."""
    pairs, pre = _pairs(metadata), metadata.get(f"{PREFIX}pre", "gpt-2")
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False} for each in SPLITS[pre]
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, level]},
        "post_processor": level,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {**_BPE, "vocab": vocabulary, "merges": pairs, "ignore_merges": pre in WHOLE},
    }


def _pairs(metadata: Mapping[str, Any]) -> list[list[str]]:
    merges = metadata.get(f"{PREFIX}merges")
    if not isinstance(merges, list):
        raise ValueError(f"{PREFIX}merges is missing; download the file again")
    pairs = [each.split(" ", 1) for each in merges]
    if odd := next((each for each in pairs if len(each) != 2), None):
        raise ValueError(f"{PREFIX}merges has {odd[0][:60]!r}, expected two tokens")
    return pairs


MODELS = {"llama": _by_score, "gpt2": _by_list, LETTERS: _by_letters}
