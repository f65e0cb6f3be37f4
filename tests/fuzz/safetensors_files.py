"""model.safetensors: headers that do not fit their bytes, odd encodings, indexes and the files they name."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from tests.fuzz.case import GENERATE, Case, Raw, anywhere, codec, damaged, odd, text_of
from tests.fuzz.honest import FILES

WHOLE = FILES["model.safetensors"] or b""
LENGTH = int.from_bytes(WHOLE[:8], "little")
HEADER: dict[str, Any] = json.loads(WHOLE[8 : 8 + LENGTH])
VALUES = WHOLE[8 + LENGTH :]
DTYPES = ["F64", "F16", "BF16", "I8", "U8", "BOOL", "F4", "F8_E4M3", "F8_E5M2", "C64", "F6_E2M3", "I64", "x", "f32"]
NAMES = ["", "x", "../x", "model.norm.weight ", "MODEL.NORM.WEIGHT", "model.layers.1.mlp.up_proj.weight", "\x1b[2J"]
PATHS = ["../model.safetensors", "/etc/passwd", "model.safetensors", "", ".", "a/../model.safetensors", "x.bin", "\0"]
INDEX = "model.safetensors.index.json"


def cases(seed: int) -> Iterator[Case]:
    chance = random.Random(f"safetensors {seed}")
    makers = [_entries, _entries, _sizes, _text, _bytes, _index]
    while True:
        yield chance.choice(makers)(chance)


def packed(header: str | bytes, values: bytes = VALUES, length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return (len(header) if length is None else length).to_bytes(8, "little") + header + values


def _case(name: str, data: bytes) -> Case:
    return Case(name, GENERATE, {"model.safetensors": data})


def _entries(chance: random.Random) -> Case:
    """One or two entries of the header changed in structure."""
    header = dict(HEADER)
    done = []
    for _ in range(chance.randint(1, 2)):
        name = chance.choice(sorted(header))
        entry, kind = dict(header[name]), chance.randrange(8)
        begin, end = entry.get("data_offsets", (0, 0))
        if kind == 0:
            entry["dtype"] = chance.choice(DTYPES)
        elif kind == 1:
            entry["shape"] = chance.choice(([], [0], [end], [-1, -1], [2**62, 4], [1] * 70, [16.0, 16], [True], "16"))
        elif kind == 2:
            step = chance.choice((-4, 4, 1, 2**63, -(2**64), 10**30))
            entry["data_offsets"] = [begin + chance.choice((0, step)), end + step]
        elif kind == 3:
            entry["data_offsets"] = [end, begin]
        elif kind == 4:
            entry[chance.choice(("extra", "Dtype", "name"))] = odd(chance)
        elif kind == 5:
            header[chance.choice(NAMES)] = entry
        elif kind == 6:
            entry = odd(chance)
        else:
            header.pop(name)
            header[chance.choice(NAMES)] = entry
            continue
        header[name] = entry
        done.append(f"{kind} {name}")
        header = {key: each if isinstance(each, dict) else Raw(text_of(each)) for key, each in header.items()}
        if not all(isinstance(each, dict) for each in header.values()):
            break
    return _case(f"entries {done}", packed(damaged(chance, text_of(header))))


def _sizes(chance: random.Random) -> Case:
    """The length in front of the header, and what follows it."""
    text = json.dumps(HEADER)
    lengths = [0, 1, 7, LENGTH - 1, LENGTH + 1, len(WHOLE), 10**8, 10**8 + 1, 2**63, 2**64 - 1, None, None, None]
    length = chance.choice(lengths)
    values = chance.choice((VALUES, VALUES[:-1], VALUES + b"\0", b"", VALUES[: len(VALUES) // 2], VALUES * 2))
    return _case(f"length {length}, {len(values)} bytes", packed(text, values, length))


def _text(chance: random.Random) -> Case:
    """The header as JSON that only some parsers take."""
    text = json.dumps(HEADER)
    name, entry = chance.choice(list(HEADER.items()))
    choices: dict[str, str | bytes] = {
        "codec": codec(chance, text),
        "twice": text[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}",
        "dtype twice": text.replace('"dtype"', '"dtype": "I8", "dtype"', 1),
        "blanks before": chance.choice((" ", "\n", "\t", "\ufeff", "\0")) + text,
        "blanks behind": text + chance.choice((" ", "\n", "\0", "x", "}")) * chance.randint(1, 2000),
        "metadata": text.replace('{"format": "pt"}', text_of(odd(chance))),
        "nested": "[" * chance.randint(1, 100_000),
        "brackets": '{"a": [' + ",".join(["[]"] * chance.randint(1, 50_000)) + "]}",
        "anywhere": text_of(anywhere(chance, HEADER)),
        "junk": text_of(odd(chance)),
        "surrogate": text.replace("model.norm", "\\ud800model.norm"),
    }
    kind = chance.choice(sorted(choices))
    return _case(f"text {kind}", packed(choices[kind]))


def _bytes(chance: random.Random) -> Case:
    """Some bytes of the file, where the header is likelier than the values."""
    data = bytearray(WHOLE)
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(chance.choice((8, LENGTH + 8, len(data))))] = chance.randrange(256)
    return _case("bytes", bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))]))


def _index(chance: random.Random) -> Case:
    """An index, with or without the files that it names."""
    place = {name: "model-1.safetensors" for name in HEADER if name != "__metadata__"}
    name = chance.choice(sorted(place))
    kind = chance.randrange(6)
    index: Any = {"metadata": {"total_size": len(VALUES)}, "weight_map": place}
    if kind == 0:
        place[name] = chance.choice(PATHS)
    elif kind == 1:
        place[chance.choice(NAMES)] = chance.choice((place[name], "model-2.safetensors"))
    elif kind == 2:
        del place[name]
    else:
        index = anywhere(chance, index, kind - 2)
    text = damaged(chance, text_of(index))
    if kind == 5:
        text = text.replace(b'"weight_map"', b'"weight_map": {}, "weight_map"')
    files: dict[str, bytes | None] = {INDEX: text, "model-1.safetensors": WHOLE}
    files["model.safetensors"] = chance.choice((None, None, None, WHOLE))
    return Case(f"index {kind} {name}", GENERATE, files)
