"""One kernel compiled for a GPU that need not be here, as a launch at the shapes of real models has it."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minillm.kernels.tuning import SHARED_MEMORY
from tests.helpers.registers import CUOBJDUMP, spilled

TARGETS = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
FLOATS = ("alpha", "limit", "eps", "offset", "sign", "scale", "cap", "factor")
POINTERS = {"f32": "fp32", "i32": "i32", "i64": "i64", "u8": "u8", "i8": "i8"}  # by the word before "_ptr"


def kind(name: str, dtype: str, types: dict[str, str]) -> str:
    if name in types:
        return types[name]
    if name in ("r_ptr", "dw_ptr"):
        return "*fp32"
    if name.endswith("_ptr"):
        return f"*{POINTERS.get(name.split('_')[-2], dtype)}"
    return "fp32" if name in FLOATS else "i32"


# What a launch does not find to be a multiple of 16, at the shapes of real models: all else it does, and reads 16 bytes
# at a time then, and keeps fewer addresses.
ODD = set("top_k groups share rows_each kv_heads past first_key queries keys start ring tokens times ignore picks "
          "rows blocks count rows_each groups spans steps".split())  # fmt: skip


def compile_one(kernel: Any, given: dict[str, Any], dtype: str, name: str) -> tuple[int, str]:
    """The shared memory that it takes, and what else. Raises AssertionError where it does not fit the target, or spills
    on sm_90."""
    names, target = kernel.arg_names, TARGETS[name]
    signature = {n: "constexpr" if n in given else kind(n, dtype, given.get("types", {})) for n in names}
    constants = {n: value for n, value in given.items() if n in signature}
    options = {n: given[n] for n in ("num_warps", "num_stages") if n in given}
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if n not in constants and n not in ODD and signature[n] != "fp32"
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    made = triton.compile(source, target=target, options=options)
    shared = made.metadata.shared
    assert made.asm["cubin" if target.backend == "cuda" else "hsaco"]
    assert shared <= SHARED_MEMORY[name], (kernel.__name__, given, name, shared)
    if name != "sm_90" or not CUOBJDUMP.exists():
        return shared, ""
    registers, stack = spilled(made)
    assert stack == 0, (kernel.__name__, dtype, given, f"{stack} bytes of stack")
    return shared, f"{registers} registers, nothing spilled"
