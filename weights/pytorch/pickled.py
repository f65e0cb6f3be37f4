"""The pickles in which `torch.save` describes tensors, read without an unpickler.

`pickletools` splits a pickle into its steps, and the few that a dictionary of tensors takes are followed here. Nothing
is imported or called: a name stays a name, and "calling" one of the few known ones with the few arguments it has makes
a `Strided`, which says where a tensor's values lie. Anything else is refused.
"""

from __future__ import annotations

import collections
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

MAX_STEPS = 4_000_000  # about forty for a tensor
MAX_DIMENSIONS = 64
STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
}  # fmt: skip
TYPES = """
    float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex64 complex128
    float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu""".split()
# What names mean: a type, a storage's type (of bytes where it has none), or what is called.
NAMED: dict[str, torch.dtype] = {
    **{f"torch {name}Storage": dtype for name, dtype in STORAGES.items()},
    **{f"torch {name}": getattr(torch, name) for name in TYPES if hasattr(torch, name)},
    "torch.storage UntypedStorage": torch.uint8,
}
ORDERED, V2, V3 = "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"
PARAMETER, STATED = "torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"
TYPED, CLASSES = "torch._tensor _rebuild_from_type_v2", ("torch Tensor", "torch.nn.parameter Parameter")
KNOWN = {*NAMED, ORDERED, V2, V3, PARAMETER, STATED, TYPED, *CLASSES}
MARK = object()


@dataclass(frozen=True)
class Name:
    """ "module name" of something that the pickle refers to."""

    text: str


@dataclass(frozen=True)
class Storage:
    """The record of that key: so many values of a type."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class Strided:
    """A tensor: `offset` and `strides` count values of `dtype` in its storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Reader:
    """Follows pickles of one file; `legacy` if it is from before PyTorch 1.6."""

    def __init__(self, legacy: bool = False) -> None:
        self.legacy = legacy
        self.storages: dict[str, Storage] = {}
        self.steps = 0

    def read(self, data: BinaryIO) -> Any:
        """What the next pickle in `data` describes. Raises ValueError, and what `pickletools` raises."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(data):
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise ValueError(f"a description of more than {MAX_STEPS:,} steps")
            if opcode.name not in STEPS:
                raise ValueError(f"a step {opcode.name}, which no dictionary of tensors needs")
            STEPS[opcode.name](self, argument)
        if len(self.stack) != 1:
            raise ValueError("a description that leaves something over")
        return self.pop()

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise ValueError("a step that lacks its operand")
        return self.stack.pop()

    def popped(self) -> list[Any]:
        """All down to the last mark."""
        found: list[Any] = []
        while self.stack and self.stack[-1] is not MARK:
            found.append(self.stack.pop())
        if not self.stack:
            raise ValueError("a step that lacks its mark")
        self.stack.pop()
        return found[::-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"a step that fills no {kind.__name__}")
        return self.stack[-1]

    def put(self, number: int | None) -> None:
        value = self.pop()
        self.push(value)
        self.memo[len(self.memo) if number is None else number] = value

    def get(self, number: int) -> None:
        if number not in self.memo:
            raise ValueError("a reference to nothing")
        self.push(self.memo[number])

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(values[::-1]))

    def set_items(self, pairs: list[Any]) -> None:
        into = self.top(dict)
        if len(pairs) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str:
                raise ValueError(f"the key {_said(key)}, which is no name")
            if key in into:
                raise ValueError(f"{key[:80]!r} twice")
            into[key] = value

    def name(self, text: str) -> None:
        if text not in KNOWN:
            raise ValueError(f"{text[:80]!r}, which is no part of a plain tensor")
        self.push(Name(text))

    def stack_name(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str or " " in name + module:
            raise ValueError("a name that is none")
        self.name(f"{module} {name}")

    def storage(self) -> None:
        """("storage", its type, key, device, count), and in the old format None, or what it is a view of."""
        given, behind = self.pop(), (None,) if self.legacy else ()
        if type(given) is not tuple or len(given) < 5 or given[0] != "storage" or given[5:] != behind:
            raise ValueError("a reference that is not to a storage")
        _, kind, key, device, count = given[:5]
        if type(key) is not str or type(device) is not str or not _whole(count):
            raise ValueError("a reference to a storage that is none")
        made = Storage(key, _dtype(kind, True), count)
        if self.storages.setdefault(key, made) != made:
            raise ValueError(f"two storages called {key[:80]!r}")
        self.push(made)

    def call(self) -> None:
        arguments, what = self.pop(), self.pop()
        if type(arguments) is not tuple or not isinstance(what, Name):
            raise ValueError("a call of something unknown")
        self.push(_made(what.text, arguments))

    def build(self) -> None:
        """The attributes of an OrderedDict, which say what versions modules have: of no use here."""
        state = self.pop()
        self.top(collections.OrderedDict)
        if type(state) is not dict:
            raise ValueError("attributes that are none")


def _made(what: str, given: tuple[Any, ...]) -> Any:
    kinds = [type(each) for each in given]
    if what == ORDERED and not given:
        return collections.OrderedDict()
    if what == TYPED and kinds[:3] == [Name, Name, tuple] and given[1].text in CLASSES and given[0].text in (V2, V3):
        return _made(given[0].text, given[2])
    if what in (PARAMETER, STATED) and kinds[:2] == [Strided, bool] and len(given) > 2 and _no(given[2]):
        return given[0]
    if what == V2 and kinds[:1] == [Storage] and len(given) in (6, 7):
        return _strided(given[0].dtype, given[:6], given[6:])
    if what == V3 and kinds[:1] == [Storage] and len(given) in (7, 8) and kinds[6] is Name:
        return _strided(_dtype(given[6], False), given[:6], given[7:])
    raise ValueError(f"{what!r} with arguments that no plain tensor has")


def _dtype(name: Any, storage: bool) -> torch.dtype:
    """What a type is called, or a storage of it."""
    found = NAMED.get(name.text) if isinstance(name, Name) and name.text.endswith("Storage") == storage else None
    if found is None:
        raise ValueError("a type that is unknown")
    return found


def _strided(dtype: torch.dtype, given: tuple[Any, ...], metadata: tuple[Any, ...]) -> Strided:
    storage, offset, shape, strides, gradient, hooks = given
    sizes = [offset, *(shape if type(shape) is tuple else [None]), *(strides if type(strides) is tuple else [None])]
    if not all(map(_whole, sizes)) or len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise ValueError("a tensor whose sizes are none")
    if type(gradient) is not bool or not _no(hooks) or not all(each is None or _no(each) for each in metadata):
        raise ValueError("a tensor with hooks or marks, not a plain one")
    return Strided(storage, dtype, offset, shape, strides)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _no(value: Any) -> bool:
    return isinstance(value, dict) and not value


def _said(value: Any) -> str:
    return repr(value)[:80] if type(value) in (int, bool, type(None)) else f"of type {type(value).__name__}"


Step = Callable[[Reader, Any], None]
PUSHED = "BININT BININT1 BININT2 LONG1 BINUNICODE SHORT_BINUNICODE".split()
STEPS: dict[str, Step] = {
    **dict.fromkeys(PUSHED, Reader.push),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), Reader.get),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), Reader.put),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda reader, _: None),
    "MARK": lambda reader, _: reader.push(MARK),
    "NONE": lambda reader, _: reader.push(None),
    "NEWTRUE": lambda reader, _: reader.push(True),
    "NEWFALSE": lambda reader, _: reader.push(False),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_TUPLE": lambda reader, _: reader.push(()),
    "TUPLE": lambda reader, _: reader.push(tuple(reader.popped())),
    "TUPLE1": lambda reader, _: reader.tuple_of(1),
    "TUPLE2": lambda reader, _: reader.tuple_of(2),
    "TUPLE3": lambda reader, _: reader.tuple_of(3),
    "APPEND": lambda reader, _: _append(reader, [reader.pop()]),
    "APPENDS": lambda reader, _: _append(reader, reader.popped()),
    "SETITEM": lambda reader, _: reader.set_items([reader.pop(), reader.pop()][::-1]),
    "SETITEMS": lambda reader, _: reader.set_items(reader.popped()),
    "GLOBAL": Reader.name,
    "STACK_GLOBAL": lambda reader, _: reader.stack_name(),
    "BINPERSID": lambda reader, _: reader.storage(),
    "REDUCE": lambda reader, _: reader.call(),
    "BUILD": lambda reader, _: reader.build(),
}  # fmt: skip


def _append(reader: Reader, values: list[Any]) -> None:
    reader.top(list).extend(values)
