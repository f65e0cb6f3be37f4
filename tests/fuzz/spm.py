"""tokenizer.model: a SentencePiece protobuf, field by field, and the files of added tokens beside it."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any

from tests.fuzz.case import GENERATE, Case, damaged, odd, text_of
from tests.fuzz.honest import WORDS
from tests.fuzz.tokenizers_json import TEXTS

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
PROMPTS = ["the", "a", "", "x" * 40, "\u2581", "😀", "<s>a"]


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    data = b""
    while value > 127:
        data, value = data + bytes([value & 127 | 128]), value >> 7
    return data + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, data: bytes, claimed: int | None = None) -> bytes:
    return varint(field << 3 | 2) + varint(len(data) if claimed is None else claimed) + data


def piece(text: bytes, score: float, kind: int) -> bytes:
    return message(1, message(1, text) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))


def honest() -> list[bytes]:
    """The fields of a model: its pieces, how it was trained, how texts are normalised."""
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
    words = [word.replace(" ", "\u2581") for word in WORDS]
    pieces = [piece(word.encode(), -float(at), kinds.get(word, NORMAL)) for at, word in enumerate(words)]
    trained = number(3, 1) + number(4, len(words)) + number(40, 0) + number(41, 1) + number(42, 2) + number(43, -1)
    return [*pieces, message(2, trained), message(3, message(1, b"identity") + number(3, 1) + number(5, 1))]


def cases(seed: int) -> Iterator[Case]:
    chance = random.Random(f"spm {seed}")
    while True:
        fields = honest()
        done = [_changed(chance, fields) for _ in range(chance.randint(0, 2))]
        files: dict[str, bytes | None] = {"tokenizer.json": None, "tokenizer.model": b"".join(fields)}
        if chance.random() < 0.5:
            added = _added(chance)
            done.append(text_of(added)[:60])
            files["added_tokens.json"] = damaged(chance, text_of(added))
        settings = {"added_tokens_decoder": {"40": odd(chance)}, "legacy": odd(chance), "add_bos_token": odd(chance)}
        kept = {key: settings[key] for key in chance.sample(sorted(settings), chance.choice((0, 0, 1)))}
        files["tokenizer_config.json"] = damaged(chance, text_of(kept))
        argv = [chance.choice(PROMPTS) if each == "the" else each for each in GENERATE]
        yield Case(" ".join(done) or "as it is", argv, files)


def _changed(chance: random.Random, fields: list[bytes]) -> str:
    at, kind = chance.randrange(len(fields)), chance.randrange(10)
    whole = fields[at]
    if kind == 0:
        del fields[at]
    elif kind == 1:
        fields.insert(at, fields[chance.randrange(len(fields))])
    elif kind == 2:
        score = chance.choice((float("nan"), float("inf"), 1e38, -1e38))
        fields[at] = piece(chance.choice(TEXTS).encode(), score, chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 99)))
    elif kind == 3:
        fields[at] = piece(chance.randbytes(chance.randrange(9)), 0.0, BYTE)
    elif kind == 4:
        value = chance.choice((0, 1, 3, 4, 2**31, -1))
        fields.append(message(2, number(chance.choice((3, 4, 35, 40, 41, 42, 43)), value)))
    elif kind == 5:
        claimed = chance.choice((0, 4, 2**31, 2**32 - 1))
        data = struct.pack("<I", claimed) + chance.randbytes(chance.choice((0, 3, 1024, 2048)))
        fields.append(message(3, message(2, data)))
    elif kind == 6:
        fields[at] = message(1, b"a", chance.choice((0, 2, 2**31, 2**63)))
    elif kind == 7:
        fields[at] = bytes(chance.choice((each, each ^ 1 << chance.randrange(8))) for each in whole)
    elif kind == 8:
        fields[at:] = [whole[: chance.randrange(len(whole) + 1)]]
    else:
        fields[:] = [chance.choice((b"", b"\n" * 5000, b"\0", b"{}", bytes(range(256))))]
    return f"{kind} at {at}"


def _added(chance: random.Random) -> Any:
    ids = [0, 5, 35, 36, 39, 40, 10**9, -1, "36", "٣", 36.0, None, True]
    texts = [*TEXTS, "<s>", "<unk>", "<x>", "\x1b[2J"]
    return chance.choice(({chance.choice(texts): chance.choice(ids) for _ in range(chance.randint(1, 4))}, odd(chance)))
