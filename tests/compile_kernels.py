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

from minillm.kernels import attention, attention_backward, decode_attention, gated_act, rms_norm, rope

TARGETS = [
    GPUTarget("cuda", 80, 32),
    GPUTarget("cuda", 90, 32),
    GPUTarget("cuda", 100, 32),
    GPUTarget("hip", "gfx942", 64),
]
FLOATS = ("alpha", "limit", "eps", "offset", "sign", "scale", "cap")
POINTERS = {"f32": "fp32", "i32": "i32", "i64": "i64", "u8": "u8", "i8": "i8"}  # by the word before "_ptr"

# Of the attention kernels: with everything, and with nothing, at the head sizes of their configurations.
PLAIN = {"HAS_FIRST": False, "HAS_CAP": False, "WINDOW": 0}
FULL = {"HAS_FIRST": True, "HAS_CAP": True, "WINDOW": 128}


def heads(size: int) -> dict[str, int]:
    return {"D": size, "V": size, "BLOCK_D": attention.padded(size), "BLOCK_V": attention.padded(size)}


def blocks(size: int, most: int = 128) -> dict[str, int]:
    queries, keys, warps, stages = attention.config(size, size)
    return {"BLOCK_Q": min(queries, most), "BLOCK_K": keys, "num_warps": warps, "num_stages": stages}


SIZES = (64, 128, 256)
DECODE = {"G": 4, "BLOCK_G": 16, "BLOCK_S": decode_attention.BLOCK_S}
BACKWARD = [{**made, **heads(size), **blocks(size, 64), "G": 4} for made in (PLAIN, FULL) for size in SIZES]

# kernel -> each set of constants it is launched with
KERNELS = {
    rms_norm.forward_kernel: [{"BEFORE_WEIGHT": before, "BLOCK": 4096} for before in (True, False)],
    rms_norm.backward_kernel: [{"BLOCK": 4096}],
    rope.rope_kernel: [
        {"INTERLEAVED": pairs, "HEADS": 32, "HALF": 64, "REST": rest} for pairs in (True, False) for rest in (0, 32)
    ],
    gated_act.forward_kernel: [{"ACTIVATION": kind, "BLOCK": gated_act.BLOCK} for kind in (0, 1, 2, 3)],
    gated_act.backward_kernel: [{"ACTIVATION": kind, "BLOCK": gated_act.BLOCK} for kind in (0, 1, 2, 3)],
    attention.forward_kernel: [
        {**made, **heads(size), **blocks(size), "RAGGED": ragged, "HAS_SINKS": ragged}
        for made, ragged in ((PLAIN, False), (FULL, True))
        for size in SIZES
    ],
    attention_backward.key_kernel: BACKWARD,
    attention_backward.query_kernel: BACKWARD,
    decode_attention.part_kernel: [
        {**made, **heads(size), **DECODE, "PAGED": paged, "HAS_LENGTHS": paged}
        for made, paged in ((PLAIN, False), (FULL, True))
        for size in SIZES
    ],
    decode_attention.join_kernel: [{"HAS_SINKS": True, "V": 128, "BLOCK_V": 128, "BLOCK_P": 64}],
}


def kind(name: str, dtype: str) -> str:
    if name in ("r_ptr", "dw_ptr"):
        return "*fp32"
    if name.endswith("_ptr"):
        return f"*{POINTERS.get(name.split('_')[-2], dtype)}"
    return "fp32" if name in FLOATS else "i32"


def main() -> None:
    count = 0
    for kernel, variants in KERNELS.items():
        for dtype in ("bf16", "fp16", "fp32"):
            for given in variants:
                signature = {n: "constexpr" if n in given else kind(n, dtype) for n in kernel.arg_names}
                constants = {n: value for n, value in given.items() if n in signature}
                options = {n: given[n] for n in ("num_warps", "num_stages") if n in given}
                for target in TARGETS:
                    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
                    made = triton.compile(source, target=target, options=options)
                    assert made.asm["cubin" if target.backend == "cuda" else "hsaco"]
                    count += 1
                    print("compiled", kernel.__name__, dtype, given, target.arch)
    print(count)


if __name__ == "__main__":
    main()
