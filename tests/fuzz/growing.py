"""Templates that write a text and tokenizers that make more of it: what neither does by itself."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from tests.fuzz.case import CHAT, GENERATE, Case
from tests.fuzz.honest import CONFIG, TOKENIZER, as_bytes

Chance = random.Random
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["'a' * N", "'a b ' * N", "(('a' * 199) ~ ' ') * N", "' ' * N", "'the fox ' * N", "'\ufdfa' * N", "'x' * N"]
COUNTS = [1, 100, 5000, 20_000]
UNITS = ["a", "aa", " ", "ab ", "\n", "\u2581", "b"]


def cases(seed: int) -> Iterator[Case]:
    chance = random.Random(f"growing {seed}")
    while True:
        parts = {"normalizer": grower(chance), "pre_tokenizer": splitter(chance), "model": model(chance)}
        parts["added_tokens"] = [token(chance, at) for at in range(chance.choice((0, 1, 1, 3, 300)))]
        text = chance.choice(TEXTS).replace("N", str(chance.choice(COUNTS)))
        settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": f"{{{{ {text} }}}}"}
        if chance.random() < 0.3:  # those beside the file are normalized when they are added
            several = {str(each["id"]): {**each, "normalized": True} for each in parts.pop("added_tokens")}
            settings["added_tokens_decoder"] = several
        files = {"tokenizer.json": as_bytes({**TOKENIZER, **parts}), "tokenizer_config.json": as_bytes(settings)}
        files["config.json"] = as_bytes({**CONFIG, "max_position_embeddings": chance.choice((64, 2048))})
        prompt = "the quick brown fox jumps over " * 600
        argv = CHAT if chance.random() < 0.6 else [prompt if each == "the" else each for each in GENERATE]
        said = f"{text}, {json.dumps(parts['normalizer'])[-60:]}, {parts['model']['type']}"
        yield Case(said, argv, files)


def replaced(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def grower(chance: Chance) -> dict[str, Any]:
    """Letters become one, perhaps, and that one becomes many."""
    steps = [replaced(each, "a") for each in LETTERS[1:]] if chance.random() < 0.5 else []
    grown = chance.choice(UNITS) * chance.choice((1, 2, 3, 12, 64, 500))
    steps += [replaced("a", grown)] * chance.choice((1, 1, 2, 5, 32))
    steps += [{"type": kind} for kind in chance.sample(("NFKC", "NFD", "StripAccents", "Lowercase"), 1)]
    return {"type": "Sequence", "normalizers": steps}


def splitter(chance: Chance) -> dict[str, Any] | None:
    pattern = chance.choice((r"\s+$", r"\s+", r"\p{L}+", r"\p{N}{1,3}", "[\r\n]"))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return chance.choice((None, split, byte_level, {"type": "WhitespaceSplit"}))


def model(chance: Chance) -> dict[str, Any]:
    longest = chance.choice((2, 40, 600, 1900))
    scored = [["<unk>", 0.0], *(["a" * size, -1.0] for size in range(1, longest))]
    words = {"<unk>": 0, "a": 1, "##a": 2}
    return chance.choice((
        TOKENIZER["model"],
        {"type": "Unigram", "vocab": scored, "unk_id": 0, "byte_fallback": False},
        {"type": "WordPiece", "vocab": words, "unk_token": "<unk>", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": chance.choice((100, 600, 1000, 10**6))},
    ))  # fmt: skip


def token(chance: Chance, at: int) -> dict[str, Any]:
    content = "".join(chance.choice("ab ") for _ in range(chance.choice((1, 2, 8, 1000)))) + str(at)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    return {"id": 40 + at, "content": content, **flags, "normalized": chance.random() < 0.9}
