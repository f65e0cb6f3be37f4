"""tokenizer.json: every kind of component of the tokenizers library, with numbers and texts that it may not expect."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz.case import GENERATE, Case, anywhere, damaged, odd, text_of
from tests.fuzz.honest import TOKENIZER, WORDS

Chance = random.Random
REGEXES = [
    "", "a", ".", "a*", "(x+x+)+y", "(a|a)*b", "(?=a)", "^", "$", "(?<!x)a", "[", "(", "a{0,100000}", "\\p{L}+",
    "\\p{X}", "(?i:'s|'t)|\\s+(?!\\S)|\\s+", "(.*)*c", "\\1", "(?<a>\\g<a>)", "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+", "\\x00",
    "x" * 5000, "(?:){9}", "(" * 2000 + ")" * 2000, "((a{9}){9}){9}",
]  # fmt: skip
TEXTS = ["", "a", "aa", " ", "▁", "ab", "the", "\0", "é", "<s>", "x" * 200, "\ufeff", "a" * 3000, "\u202e", "ğ"]
NUMBERS = [0, 1, 2, 5, 40, 7, 64, 3, 0, 1, 2**31, 2**32 - 1, 10**9, 2**63, -1, 2**64, 0.5]
PROMPTS = [
    "the", "a", "", " ", "x" * 40, "thethe" * 30, "é\u0301ﬁ", "<s>a</s>", "😀", "1 2 3\n\n", "a" * 20_000,
    "the quick brown fox " * 1000, " " * 20_000, ("a" * 199 + " ") * 100,
]  # fmt: skip


def cases(seed: int) -> Iterator[Case]:
    chance = random.Random(f"tokenizers {seed}")
    while True:
        values = dict(TOKENIZER)
        parts = chance.sample(sorted(PARTS), chance.choice((1, 1, 2, 3)))
        for part in parts:
            values[part] = PARTS[part](chance)
        changed = anywhere(chance, values, chance.randint(1, 2)) if chance.random() < 0.15 else values
        said = ", ".join(text_of(values[part])[:60] for part in parts)
        prompt = chance.choice(PROMPTS[:4] if chance.random() < 0.5 else PROMPTS)
        argv = [prompt if each == "the" else each for each in GENERATE]
        yield Case(said, argv, {"tokenizer.json": damaged(chance, text_of(changed))})


def pattern(chance: Chance) -> Any:
    return chance.choice(({"Regex": chance.choice(REGEXES)}, {"String": chance.choice(TEXTS)}))


def charsmap(chance: Chance) -> Any:
    """The length of a trie, the trie, and the texts that it leads to: seldom all of one mind."""
    trie = b"".join(struct.pack("<I", chance.getrandbits(32)) for _ in range(chance.choice((0, 1, 256, 512))))
    claimed = chance.choice((len(trie), len(trie) + 1, 0, 2**31, 2**32 - 1, 3, 1024))
    data = struct.pack("<I", claimed) + trie + b"a\0bc\0"
    choices = [data, data[: chance.randrange(len(data))], b"", b"\0\0\0", data[:4]]
    return chance.choice((base64.b64encode(chance.choice(choices)).decode(), None, "AAAA", "*", [0, 0, 0]))


def normalizer(chance: Chance, depth: int = 0) -> Any:
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "Replace": lambda: {"pattern": pattern(chance), "content": chance.choice(TEXTS)},
        "Prepend": lambda: {"prepend": chance.choice(TEXTS)},
        "Strip": lambda: {"strip_left": chance.random() < 0.5, "strip_right": True},
        "Precompiled": lambda: {"precompiled_charsmap": charsmap(chance)},
        "BertNormalizer": lambda: dict.fromkeys(
            ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), chance.choice((True, False, None))
        ),
        "Sequence": lambda: {"normalizers": several(chance, normalizer, depth)},
        **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "ByteLevel"), dict),
    }
    return of_kind(chance, made)


def pre_tokenizer(chance: Chance, depth: int = 0) -> Any:
    behaviours = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "Split": lambda: {
            "pattern": pattern(chance), "behavior": chance.choice(behaviours), "invert": chance.random() < 0.3
        },
        "ByteLevel": lambda: {"add_prefix_space": True, "trim_offsets": True, "use_regex": chance.random() < 0.5},
        "Metaspace": lambda: {
            "replacement": chance.choice(("▁", "a", "", "ab")),
            "prepend_scheme": chance.choice(("always", "never", "x")),
        },
        "Punctuation": lambda: {"behavior": chance.choice(behaviours)},
        "Digits": lambda: {"individual_digits": chance.random() < 0.5},
        "CharDelimiterSplit": lambda: {"delimiter": chance.choice(TEXTS)},
        "FixedLength": lambda: {"length": chance.choice(NUMBERS)},
        "Sequence": lambda: {"pretokenizers": several(chance, pre_tokenizer, depth)},
        **dict.fromkeys(("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts"), dict),
    }  # fmt: skip
    return of_kind(chance, made)


def post_processor(chance: Chance, depth: int = 0) -> Any:
    def piece() -> Any:
        token = {"id": chance.choice(("<s>", "</s>", "x", "")), "type_id": chance.choice(NUMBERS[:4])}
        return chance.choice(({"SpecialToken": token}, {"Sequence": {"id": chance.choice("AB"), "type_id": 0}}))

    def template() -> dict[str, Any]:
        ids = [chance.choice(NUMBERS[:11]) for _ in range(chance.choice((1, 1, 3, 20_000)))]
        special = {"<s>": {"id": "<s>", "ids": ids, "tokens": ["<s>"] * chance.choice((1, len(ids)))}}
        single = [piece() for _ in range(chance.choice((0, 1, 2, 3000)))]
        return {"single": single, "pair": [piece() for _ in range(3)], "special_tokens": special}

    pair = ["</s>", chance.choice(NUMBERS)]
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "TemplateProcessing": template,
        "ByteLevel": lambda: {"add_prefix_space": True, "trim_offsets": chance.random() < 0.5, "use_regex": True},
        "BertProcessing": lambda: {"sep": pair, "cls": ["<s>", 1]},
        "RobertaProcessing": lambda: {"sep": pair, "cls": ["<s>", 1], "trim_offsets": True, "add_prefix_space": False},
        "Sequence": lambda: {"processors": several(chance, post_processor, depth)},
    }
    return of_kind(chance, made)


def decoder(chance: Chance, depth: int = 0) -> Any:
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "Replace": lambda: {"pattern": pattern(chance), "content": chance.choice(TEXTS)},
        "Strip": lambda: {
            "content": chance.choice(TEXTS), "start": chance.choice(NUMBERS), "stop": chance.choice(NUMBERS)
        },
        "WordPiece": lambda: {"prefix": chance.choice(TEXTS), "cleanup": True},
        "BPEDecoder": lambda: {"suffix": chance.choice(TEXTS)},
        "CTC": lambda: {"pad_token": chance.choice(TEXTS), "word_delimiter_token": "|", "cleanup": True},
        "Metaspace": lambda: {"replacement": chance.choice(("▁", "")), "prepend_scheme": "always", "split": True},
        "ByteLevel": lambda: {"add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "Sequence": lambda: {"decoders": several(chance, decoder, depth)},
        **dict.fromkeys(("Fuse", "ByteFallback"), dict),
    }  # fmt: skip
    return of_kind(chance, made)


def model(chance: Chance, depth: int = 0) -> Any:
    vocab: dict[str, Any] = {word: i for i, word in enumerate(WORDS)}
    for _ in range(chance.randint(0, 2)):
        vocab[chance.choice((*TEXTS, "zz"))] = chance.choice((0, 3, 39, 40, 10**6, 2**32, -1))
    merges: list[Any] = [["t", "h"], ["h", "e"]]
    if chance.random() < 0.3:
        merges.append(chance.choice((["q", "q"], ["", ""], "t h", "t", ["a"], ["a", "n", "x"], 5, "  ")))
    scored = [[word, chance.choice((-1.0, 0.0, 1e308, -1e308, 5))] for word in vocab]
    unknown = chance.choice(("<unk>", "zzz", None, ""))
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "BPE": lambda: {
            "vocab": vocab, "merges": merges, "unk_token": unknown, "byte_fallback": chance.random() < 0.3,
            "dropout": chance.choice((None, 0.0, 1.0, 2.0, -1.0)), "fuse_unk": chance.random() < 0.3,
            "continuing_subword_prefix": chance.choice((None, "##", "é")), "ignore_merges": chance.random() < 0.3,
            "end_of_word_suffix": chance.choice((None, "</w>")),
        },
        "Unigram": lambda: {"vocab": scored, "unk_id": chance.choice((0, None, 99, -1)), "byte_fallback": False},
        "WordPiece": lambda: {
            "vocab": vocab, "unk_token": unknown, "continuing_subword_prefix": chance.choice(TEXTS),
            "max_input_chars_per_word": chance.choice(NUMBERS),
        },
        "WordLevel": lambda: {"vocab": vocab, "unk_token": unknown},
    }  # fmt: skip
    return of_kind(chance, made)


def added(chance: Chance, depth: int = 0) -> Any:
    def token() -> dict[str, Any]:
        flags = {name: chance.random() < 0.4 for name in ("single_word", "lstrip", "rstrip", "special")}
        flags["normalized"] = chance.random() < 0.8
        number = chance.choice((0, 1, 35, 36, 39, 40, 10**6, 2**32 - 1, -1))
        return {"id": number, "content": chance.choice((*TEXTS, "<s>", "<x>")), **flags}

    return [token() for _ in range(chance.choice((1, 2, 5)))]


def limits(chance: Chance, depth: int = 0) -> Any:
    """Truncation or padding."""
    number = chance.choice(NUMBERS)
    cut = {"max_length": number, "stride": chance.choice(NUMBERS), "strategy": "LongestFirst", "direction": "Right"}
    filled = {"strategy": {"Fixed": number}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    return chance.choice((cut, {**filled, "pad_to_multiple_of": chance.choice(NUMBERS)}))


def several(chance: Chance, make: Callable[[Chance, int], Any], depth: int) -> list[Any]:
    """Components in a row: a few, or the same one many times."""
    if chance.random() < 0.15:
        return [make(chance, 9)] * 40
    return [] if depth > 3 else [make(chance, depth + 1) for _ in range(chance.randint(0, 3))]


def of_kind(chance: Chance, made: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
    kind = chance.choice(sorted(made))
    values = {"type": kind, **made[kind]()}
    if chance.random() < 0.04:
        values[chance.choice(sorted(values))] = odd(chance)
    return values


PARTS: dict[str, Callable[[Chance], Any]] = {
    "normalizer": normalizer,
    "pre_tokenizer": pre_tokenizer,
    "post_processor": post_processor,
    "decoder": decoder,
    "model": model,
    "added_tokens": added,
    "truncation": limits,
    "padding": limits,
}
