"""Compile every kernel for GPUs that need not be here; run by test_kernels.py without Triton's interpreter."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parent.parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minillm.kernels import gated_act, rms_norm, rope

TARGETS = [
    GPUTarget("cuda", 80, 32),
    GPUTarget("cuda", 90, 32),
    GPUTarget("cuda", 100, 32),
    GPUTarget("hip", "gfx942", 64),
]
FLOATS = {"alpha": "fp32", "limit": "fp32", "eps": "fp32", "offset": "fp32", "sign": "fp32"}

# kernel -> each set of constants it is launched with
KERNELS = {
    rms_norm.forward_kernel: [{"BEFORE_WEIGHT": before, "BLOCK": 4096} for before in (True, False)],
    rms_norm.backward_kernel: [{"BLOCK": 4096}],
    rope.rope_kernel: [
        {"INTERLEAVED": pairs, "HEADS": 32, "HALF": 64, "REST": rest} for pairs in (True, False) for rest in (0, 32)
    ],
    gated_act.forward_kernel: [{"ACTIVATION": kind, "BLOCK": gated_act.BLOCK} for kind in (0, 1, 2, 3)],
    gated_act.backward_kernel: [{"ACTIVATION": kind, "BLOCK": gated_act.BLOCK} for kind in (0, 1, 2, 3)],
}


def kind(name: str, dtype: str) -> str:
    if name in ("r_ptr", "dw_ptr"):
        return "*fp32"
    if name.endswith("_ptr"):
        return f"*{dtype}"
    return FLOATS.get(name, "i32")


def main() -> None:
    count = 0
    for kernel, constants in KERNELS.items():
        for dtype in ("bf16", "fp16", "fp32"):
            for given in constants:
                signature = {n: "constexpr" if n in given else kind(n, dtype) for n in kernel.arg_names}
                for target in TARGETS:
                    made = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=given), target=target)
                    assert made.asm["cubin" if target.backend == "cuda" else "hsaco"]
                    count += 1
                    print("compiled", kernel.__name__, dtype, given, target.arch)
    print(count)


if __name__ == "__main__":
    main()
