"""pytorch_model.bin: the pickle's opcodes, the members of its zip, and the format from before zips."""

from __future__ import annotations

import io
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.fuzz.case import GENERATE, Case, codec, damaged, odd, text_of
from tests.fuzz.honest import tensors

BIN = "pytorch_model.bin"
GLOBALS = ["os system", "builtins eval", "builtins bytearray", "torch _utils._rebuild_tensor_v2", "torch Size",
           "torch.serialization load", "torch FloatStorage", "collections OrderedDict", "builtins getattr",
           "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_meta_tensor_no_storage",
           "torch._utils _rebuild_wrapper_subclass", "torch QuantizedLinear", "numpy.core.multiarray _reconstruct",
           "torch float32", "torch device", "_codecs encode", "torch nn.Parameter", "builtins set"]  # fmt: skip
OPCODES = [value for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes)]
OPCODES = sorted({each for each in OPCODES if len(each) == 1})


def saved(legacy: bool = False, **more: Any) -> bytes:
    """The honest tensors as torch.save writes them, and other entries."""
    stream = io.BytesIO()
    torch.save({**tensors(), **more}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def zipped(parts: dict[str, bytes], deflated: frozenset[str] = frozenset(), twice: str | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in parts.items():
            file.writestr(name, data, zipfile.ZIP_DEFLATED if name in deflated else zipfile.ZIP_STORED)
            if name == twice:
                file.writestr(name, data[::-1])
    return stream.getvalue()


def cases(seed: int) -> Iterator[Case]:
    chance = random.Random(f"torch {seed}")
    whole, legacy = saved(), saved(legacy=True)
    parts = members(whole)
    makers: list[Callable[[random.Random, dict[str, bytes], bytes, bytes], tuple[str, bytes]]]
    makers = [_pickle, _pickle, _program, _members, _members, _directory, _bytes, _index]
    while True:
        maker = chance.choice(makers)
        name, data = maker(chance, parts, whole, legacy)
        files: dict[str, bytes | None] = {"model.safetensors": None, BIN: data}
        if maker is _index:
            files[BIN + ".index.json"] = damaged(chance, text_of({"weight_map": {"model.norm.weight": odd(chance)}}))
        yield Case(name, GENERATE, files)


def _pickle(chance: random.Random, parts: dict[str, bytes], whole: bytes, legacy: bytes) -> tuple[str, bytes]:
    """Bytes of the pickle replaced, put in, or left out."""
    data = bytearray(parts["archive/data.pkl"])
    for _ in range(chance.randint(1, 3)):
        at, kind = chance.randrange(len(data)), chance.randrange(4)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            data[at:at] = chance.choice(OPCODES)
        elif kind == 2:
            del data[at : at + chance.randint(1, 9)]
        else:
            data[at:at] = struct.pack("<i", chance.choice((-1, 0, 2**31 - 1, 2**20)))
    return "pickle", zipped({**parts, "archive/data.pkl": bytes(data)})


def _program(chance: random.Random, parts: dict[str, bytes], whole: bytes, legacy: bytes) -> tuple[str, bytes]:
    """A small pickle of its own: a call, a long number, nested tuples, a key that is hard to hash, a loop."""
    module, name = chance.choice(GLOBALS).split()
    called = f"c{module}\n{name}\n".encode()
    number = chance.choice((2, 45, 2**20, 2**31 - 10, -1))
    arguments = chance.choice((b"(I%d\ntR" % number, b"(X\x01\0\0\0xI%d\ntR" % number, b")R", b"(]tR", b""))
    depth = chance.choice((3, 45, 1000))
    doubled = b")" + b"2\x86" * depth  # DUP and TUPLE2: 2^depth to walk through
    programs = {
        f"call {module}.{name} {arguments!r}": b"\x80\x02}X\x01\0\0\0a" + called + arguments + b"s.",
        f"key {depth}": b"\x80\x02}" + doubled + b"K\x01s.",
        f"value {depth}": b"\x80\x02}X\x01\0\0\0a" + doubled + b"s.",
        f"long {number}": b"\x80\x02}X\x01\0\0\0a\x8b" + struct.pack("<i", number) + b"\x01s.",
        f"text {number}": b"\x80\x02}X" + struct.pack("<i", number) + b"as.",
        "itself": b"\x80\x02}q\0X\x01\0\0\0ah\0s.",
        "set": b"\x80\x04\x8f" + doubled + b"\x90.",
        "memo": b"\x80\x02}r" + struct.pack("<i", number) + b".",
        "nothing": b".",
    }
    kind = chance.choice(sorted(programs))
    if chance.random() < 0.3:
        return f"legacy {kind}", legacy[: legacy.index(b"\x8a")] + programs[kind] + b"\0" * 64
    return kind, zipped({**parts, "archive/data.pkl": programs[kind]})


def _members(chance: random.Random, parts: dict[str, bytes], whole: bytes, legacy: bytes) -> tuple[str, bytes]:
    """A storage that is short, long, deflated, there twice, or not there."""
    name = chance.choice(sorted(parts))
    data, kind = parts[name], chance.randrange(9)
    if kind < 3:
        data = (data[: chance.randrange(len(data) + 1)], data + b"\0" * 4, b"")[kind]
        return f"{name} of {len(data)} bytes", zipped({**parts, name: data})
    if kind == 3:
        return f"without {name}", zipped({key: each for key, each in parts.items() if key != name})
    if kind == 4:
        return f"{name} deflated", zipped(parts, frozenset({name}))
    if kind == 5:
        return "all deflated", zipped(parts, frozenset(parts))
    if kind == 6:
        return f"{name} twice", zipped(parts, twice=name)
    if kind == 7:
        other = chance.choice(("../x", "archive/byteorder", "x/data/0", "archive/data/999", "/x", name.upper()))
        return f"{name} is {other}", zipped({(other if key == name else key): each for key, each in parts.items()})
    return "byte order", zipped({**parts, "archive/byteorder": chance.choice((b"big", b"", b"\xff" * 99, b"little "))})


def _directory(chance: random.Random, parts: dict[str, bytes], whole: bytes, legacy: bytes) -> tuple[str, bytes]:
    """The zip's directory at the end of the file, or the heads in front of its members."""
    data, begin = bytearray(whole), whole.index(b"PK\x01\x02")
    for _ in range(chance.randint(1, 3)):
        at = chance.choice((chance.randrange(begin, len(data)), whole.rindex(b"PK\x03\x04") + chance.randrange(30)))
        data[at] = chance.choice((0, 255, 1, chance.randrange(256)))
    return "directory", bytes(data)


def _bytes(chance: random.Random, parts: dict[str, bytes], whole: bytes, legacy: bytes) -> tuple[str, bytes]:
    """Any bytes, of either format."""
    data = bytearray(chance.choice((whole, legacy, legacy)))
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(chance.choice((len(data), 2000)))] = chance.randrange(256)
    if chance.random() < 0.2:
        return "cut", bytes(data[: chance.randrange(len(data))])
    return "bytes", bytes(data) + chance.choice((b"", b"", whole[:1000], codec(chance, "x")))


def _index(chance: random.Random, parts: dict[str, bytes], whole: bytes, legacy: bytes) -> tuple[str, bytes]:
    more = chance.choice((torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(8, 1).expand(8, 9),
                          torch.zeros(3, dtype=torch.complex64), "text", 5, None, [torch.zeros(2)]))  # fmt: skip
    return f"entry {type(more).__name__}", saved(more=more)
