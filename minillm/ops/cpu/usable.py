"""Whether the compiled loops can run now, which each op asks. Without numba: that is imported with the first loop."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack  # of torch.func: vmap, grad
from torch.utils._python_dispatch import _get_current_dispatch_mode

ran = False  # loops have run in this process, on threads that a fork leaves behind
forked, said = False, False
beside: Any = None  # what compiles loops meanwhile, `beside.Beside`, where it was started


class NotYet(Exception):
    """A loop is not compiled yet."""


def loops() -> bool:
    """False while PyTorch traces what it is to compile or export, and while a mode looks at all ops, counts or replaces
    them: it would not see a loop. And in a process that was forked after loops had run: their threads are the parent's,
    and to start others there ends the process."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or peek_interpreter_stack() is not None:
        return False
    mode = _get_current_dispatch_mode()
    if mode is not None and not getattr(mode, "sees_loops", False):
        return False
    if forked:
        _say()
    return not forked


def to_record() -> bool:
    """Whether a step can be recorded: all its loops are there."""
    return loops() and not (beside is not None and beside.waiting)


def _say() -> None:
    global said
    if not said:
        said = True
        reason = "this process was forked from one that had used the loops' threads"
        print(f"minillm: plain PyTorch on one thread in use: {reason}; start it with spawn", file=sys.stderr)


def _in_child() -> None:
    """PyTorch's own threads are gone too, and it would wait for them: it goes on with this one."""
    global forked
    forked = ran
    if forked:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
