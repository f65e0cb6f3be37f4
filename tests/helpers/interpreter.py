"""Triton's interpreter without two things that it does in vain, which take half of its time.

- Integer sums and products are computed a second time in int64 to see whether they overflow, and the finding is dropped
  unless the option `debug` is on, which it is not.
- A call of a device function patches `triton.language` anew, as the launch around it has already done.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any


def quicken() -> None:
    """Needs TRITON_INTERPRET=1. Nothing that a kernel computes, and no assertion of it, is another after this."""
    import triton.language as tl
    from triton.runtime import interpreter

    options = interpreter.interpreter_builder.options
    assert not options.debug
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    patch, scope = interpreter._patch_lang, interpreter._LangPatchScope
    patched: set[Any] = set()  # modules, during one launch

    def patch_once(fn: Any) -> Any:
        wanted = {each for each in fn.__globals__.values() if inspect.ismodule(each) and each in (tl, tl.core)}
        if wanted <= patched:
            return scope()
        launch, made = not patched, patch(fn)
        patched.update(wanted)
        if launch:
            restore = made.restore
            made.restore = lambda: (patched.clear(), restore())
        return made

    interpreter._patch_lang = patch_once
