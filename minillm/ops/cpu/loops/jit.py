"""How the loops of this folder are compiled: by numba, once per type of array, and kept on disk.

Kernels are called with addresses, not tensors: numba takes apart an array in a microsecond and an integer in none, and
a decode step has hundreds of calls.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import pickle
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numba.extending
import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.core import bytecode, serialize
from numba.core.compiler import CompileResult
from numba.core.typing import signature

from minillm.guard.screen import note
from minillm.ops.cpu import kept, usable

if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ValueError("numba is told not to compile (DISABLE_JIT); undo that, or take kernels='reference'")

# Compiled functions are named by a number that numba counts from 1 in each process. Of kept ones of two processes equal
# names would be taken for one function, whatever is in them.
bytecode.FunctionIdentity._unique_ids = itertools.count(secrets.randbits(48))

OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


# One kernel at a time: each uses all threads, and numba's own pool, where OpenMP lacks, bears no two callers.
LOCK, CALLER = threading.Lock(), threading.local()

CONFIG: Any = numba.config
overload: Any = numba.extending.overload
intrinsic: Any = numba.extending.intrinsic
function = numba.njit(**OPTIONS)  # what kernels call
INLINE = {**OPTIONS, "forceinline": True}  # a call takes an array apart into seven arguments: too dear for one row
inline = numba.njit(**INLINE)
# A loop over `prange` that a kernel calls. What it writes must be a parameter of its own: numba takes an array that
# was made inside for one that nobody will look at.
parallel = numba.njit(parallel=True, **OPTIONS)
# How many threads `prange` has, int32. By its name: numba.get_num_threads puts an address into the code, which then
# cannot be kept for another process.
threads: Any = types.ExternalFunction("get_num_threads", signature(types.int32))


COMPILED = kept.folder()
HINT = "set XDG_CACHE_HOME to a folder that can be written"


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that is called with addresses."""
    compiled: Any = numba.njit(**OPTIONS)(function)
    if COMPILED:
        compiled._cache = Kept(function, COMPILED)

    @functools.wraps(function)
    def call(*given: Any) -> None:
        if (calls := getattr(CALLER, "calls", None)) is not None:
            calls.append((compiled, given))
        elif usable.beside is not None and COMPILED and not usable.beside.has(call, given):
            raise usable.NotYet
        if not compiled.signatures and not call.is_kept(tuple(map(compiled.typeof_pyval, given))):  # type: ignore[attr-defined]
            _say_compiling()
        with ready():
            compiled(*given)

    def is_kept(types: tuple[Any, ...]) -> bool:
        """Whether it was compiled for arguments of these types before, by this process or another."""
        return COMPILED is not None and kept.read(compiled._cache.path(types, compiled.targetctx.codegen())) is not None

    call.compiled, call.is_kept = compiled, is_kept  # type: ignore[attr-defined]
    return call


class Kept:
    """A kernel's machine code on disk: what numba asks of a cache, whose own runs what it finds, wherever it may write,
    and by the sources of one file alone."""

    def __init__(self, function: Callable[..., Any], folder: Path):
        self.cache_path, self.function = str(folder), function

    def path(self, types: tuple[Any, ...], codegen: Any) -> Path:
        """The file for arguments of these types on this processor."""
        code = self.function.__code__.co_code
        named = hashlib.sha256(repr((tuple(types), codegen.magic_tuple(), code)).encode()).hexdigest()[:16]
        return Path(self.cache_path) / f"{self.function.__name__}-{named}"

    def load_overload(self, types: tuple[Any, ...], context: Any) -> Any:
        context.refresh()
        data = kept.read(self.path(types, context.codegen()))
        if data is None:
            return None
        try:
            return CompileResult._rebuild(context, *pickle.loads(data))
        except Exception:  # though it is whole: it is compiled again
            return None

    def save_overload(self, types: tuple[Any, ...], result: Any) -> None:
        if result.library.has_dynamic_globals:
            _say(f"{self.function.__name__} is compiled in every run: it has addresses of this process in its code")
            return
        try:
            kept.write(self.path(types, result.library.codegen), serialize.dumps(result._reduce()))
        except OSError as reason:  # of a disk that is full, say
            _say(f"compiled loops are not kept in {self.cache_path}: {reason.strerror}; {HINT}")


@functools.cache
def _say(line: str) -> None:
    note(line)


def _say_compiling() -> None:
    if COMPILED is None:
        _say(f"loops are compiled in every run, for about half a minute, as there is no place to keep them; {HINT}")
    elif sys.stderr.isatty():
        _say("compiling loops for this processor, once, for about half a minute")


@contextmanager
def ready() -> Iterator[None]:
    """Kernels may run meanwhile, in as many threads as PyTorch uses."""
    wanted = torch.get_num_threads()
    threads = min(wanted, CONFIG.NUMBA_NUM_THREADS)
    if threads != getattr(CALLER, "threads", None):
        numba.set_num_threads(threads)  # counts for the calling thread
        # The first call starts numba's pool, which sets OpenMP's number of threads, and that is PyTorch's too.
        torch.set_num_threads(wanted)
        usable.ran = True
        CALLER.threads = threads
    with LOCK:
        yield


@contextmanager
def noted(calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> Iterator[None]:
    """What this thread calls meanwhile goes into a list too, kernel and arguments, to be called again."""
    CALLER.calls = calls
    try:
        yield
    finally:
        CALLER.calls = None


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate


@inline
def array_of(address: int, count: int, dtype: Any) -> Any:
    """`array`, by the type itself: an array to be like would be allocated each time."""
    return carray(_pointer(address), (count,), dtype)


@inline
def array(address: int, count: int, like: Any) -> Any:
    """The `count` elements of the type of `like` that lie at an address."""
    return carray(_pointer(address), (count,), like.dtype)


@inline
def aligned(count: int, kind: Any) -> Any:
    """A new array that begins with a cache line: a vector across two of them takes twice as long to read."""
    made = np.empty(count + 64, kind)
    skip = -made.ctypes.data % 64 // made.itemsize
    return made[skip : skip + count]
