"""How the loops of this folder are compiled: by numba, once per type of array, and kept on disk.

Kernels are called with addresses, not tensors: numba takes apart an array in a microsecond and an integer in none, and
a decode step has hundreds of calls.
"""

from __future__ import annotations

import hashlib
import os
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

from minillm.ops.cpu import usable

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


def _cache_folder() -> Path:
    """Where compiled kernels are kept, by the content of this folder: numba itself looks at one file only."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    named = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "minillm" / "cpu" / named


COMPILED = _cache_folder()


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that is called with addresses."""
    before = CONFIG.CACHE_DIR
    CONFIG.CACHE_DIR = str(COMPILED)
    try:
        compiled = numba.njit(cache=True, **OPTIONS)(function)
    finally:
        CONFIG.CACHE_DIR = before

    def call(*given: Any) -> None:
        if not compiled.signatures and not COMPILED.exists() and sys.stderr.isatty():
            COMPILED.mkdir(parents=True, exist_ok=True)
            print("minillm: compiling loops for this processor, once: 20 to 30 s", file=sys.stderr)
        if (calls := getattr(CALLER, "calls", None)) is not None:
            calls.append((compiled, given))
        with ready():
            compiled(*given)

    return call


@contextmanager
def ready() -> Iterator[None]:
    """Kernels may run meanwhile, in as many threads as PyTorch uses."""
    threads = min(torch.get_num_threads(), CONFIG.NUMBA_NUM_THREADS)
    if threads != getattr(CALLER, "threads", None):
        numba.set_num_threads(threads)  # counts for the calling thread
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
def array(address: int, count: int, like: Any) -> Any:
    """The `count` elements of the type of `like` that lie at an address."""
    return carray(_pointer(address), (count,), like.dtype)


@inline
def aligned(count: int, kind: Any) -> Any:
    """A new array that begins with a cache line: a vector across two of them takes twice as long to read."""
    made = np.empty(count + 64, kind)
    skip = -made.ctypes.data % 64 // made.itemsize
    return made[skip : skip + count]
