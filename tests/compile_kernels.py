"""Compile every kernel for GPUs that need not be here; run by test_kernels.py without Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parent.parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minillm.kernels import (
    attention,
    attention_backward,
    cross_entropy,
    decode_attention,
    fused_norm,
    gated_act,
    mla_decode,
    moe,
    quant_linear,
    rms_norm,
    rope,
    sampling,
)

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
SIZES = (64, 128, 256)
BF16 = ("bf16",)
DECODE = {"G": 4, "BLOCK_G": 16}


def heads(size: int) -> dict[str, int]:
    return {"D": size, "V": size, "BLOCK_D": attention.padded(size), "BLOCK_V": attention.padded(size)}


def blocks(table: dict[int, tuple[int, int, int, int]], size: int) -> dict[str, int]:
    return dict(zip(("BLOCK_Q", "BLOCK_K", "num_warps", "num_stages"), table[size], strict=True))


def attending(table: dict[int, tuple[int, int, int, int]], **more: Any) -> list[dict[str, Any]]:
    """In bf16 at every size and in fp16 at one, with everything and with nothing; in fp32 with its own blocks."""
    found = [
        {**made, **heads(size), **blocks(table, size), **more, "dtypes": ("bf16", "fp16") if size == 128 else ("bf16",)}
        for made in (PLAIN, FULL)
        for size in SIZES
    ]
    fp32 = [{**FULL, **heads(size), **blocks(attention.FP32, size), **more, "dtypes": ("fp32",)} for size in SIZES]
    return found + fp32


def grouping(**more: Any) -> list[dict[str, Any]]:
    """Tensor cores and not, matrices of either layout: a stride of 1 is a constant to a launch."""
    names = ("TILE", "DEPTH", "num_warps", "num_stages")
    cases = (((moe.TILE, moe.DEPTH, moe.WARPS, moe.STAGES), ("bf16", "fp16")), (moe.FP32, ("fp32",)))
    return [
        dict(zip(names, blocks, strict=True)) | {"ROWS": moe.ROWS, stride: 1, "dtypes": dtypes} | more
        for blocks, dtypes in cases
        for stride in ("w_i", "w_o")
    ]


# kernel -> each set of constants it is launched with
KERNELS = {
    rms_norm.forward_kernel: [{"BEFORE_WEIGHT": before, "BLOCK": 4096} for before in (True, False)],
    rms_norm.backward_kernel: [{"BLOCK": 4096}],
    rope.rope_kernel: [
        {"INTERLEAVED": pairs, "HEADS": 32, "HALF": 64, "REST": rest} for pairs in (True, False) for rest in (0, 32)
    ],
    gated_act.forward_kernel: [{"ACTIVATION": kind, "BLOCK": gated_act.BLOCK} for kind in (0, 1, 2, 3)],
    gated_act.backward_kernel: [{"ACTIVATION": kind, "BLOCK": gated_act.BLOCK} for kind in (0, 1, 2, 3)],
    attention.forward_kernel: attending(attention.CONFIGS, RAGGED=False, HAS_SINKS=True)
    + attending(attention.CONFIGS, RAGGED=True, HAS_SINKS=False)[:2],
    attention_backward.key_kernel: attending(attention.BACKWARD, G=4),
    attention_backward.query_kernel: attending(attention.BACKWARD, G=4),
    decode_attention.part_kernel: [
        {**made, **heads(size), **DECODE, "PAGED": paged, "HAS_LENGTHS": paged, "dtypes": dtypes}
        | dict(zip(("BLOCK_S", "num_warps", "num_stages"), blocks, strict=True))
        for made, paged in ((PLAIN, False), (FULL, True))
        for blocks, dtypes in ((decode_attention.CONFIG, ("bf16",)), (decode_attention.FP32, ("fp32",)))
        for size in SIZES
    ],
    mla_decode.part_kernel: [
        {"HAS_FIRST": paged, "PAGED": paged, "HAS_LENGTHS": paged, "R": 512, "P": 64, "BLOCK_R": 512, "BLOCK_P": 64}
        | dict(zip(("BLOCK_H", "BLOCK_S", "num_warps", "num_stages"), blocks, strict=True))
        | {"dtypes": dtypes}
        for paged in (True, False)
        for blocks, dtypes in ((mla_decode.CONFIG, ("bf16", "fp16")), (mla_decode.FP32, ("fp32",)))
    ],
    moe.gate_up_kernel: grouping(HAS_BIAS=True, ACTIVATION=0, x_t=2048),
    moe.down_kernel: grouping(HAS_BIAS=True),
    moe.few_gate_up_kernel: [
        {"HAS_BIAS": False, "ACTIVATION": 0, "TILE": moe.FEW_TILE, "DEPTH": moe.FEW_DEPTH, "w_i": 1}
    ],
    moe.few_down_kernel: [{"HAS_BIAS": False, "TILE": moe.FEW_TILE, "DEPTH": moe.FEW_DEPTH, "w_i": 1}],
    cross_entropy.loss_kernel: [
        {"HAS_CAP": cap, "GRADIENT": True, "BLOCK": cross_entropy.BLOCK, "num_warps": cross_entropy.WARPS}
        for cap in (True, False)
    ],
    quant_linear.product_kernel: [
        dict(zip(("ROWS", "TILE", "DEPTH", "num_warps", "num_stages"), blocks, strict=True))
        | {"FORMAT": form, "HAS_ZERO": form == 1, "HAS_BIAS": False, "dtypes": dtypes}
        for blocks, dtypes in (
            (quant_linear.FEW, ("bf16",)),
            (quant_linear.MANY, ("bf16",)),
            (quant_linear.FP32, ("fp32",)),
        )
        for form in (0, 1, 2)
    ],
    fused_norm.add_kernel: [{"BEFORE_WEIGHT": True, "BLOCK": 4096, "num_warps": 16}],
    fused_norm.heads_kernel: [
        {"HAS_NORM": True, "BEFORE_WEIGHT": True, "INTERLEAVED": pairs, "HALF": half, "D": 128, "BLOCK": 128}
        | {"num_warps": 1}
        for pairs, half in ((False, 64), (True, 32))
    ],
    sampling.sample_kernel: [{"SHOW": False, "BLOCK": sampling.BLOCK, "num_warps": sampling.WARPS}],
    decode_attention.join_kernel: [{"HAS_SINKS": True, "V": 128, "BLOCK_V": 128, "BLOCK_P": 64}],
}


def kind(name: str, dtype: str) -> str:
    if name in ("r_ptr", "dw_ptr"):
        return "*fp32"
    if name.endswith("_ptr"):
        return f"*{POINTERS.get(name.split('_')[-2], dtype)}"
    return "fp32" if name in FLOATS else "i32"


# What a launch finds aligned for shapes that are multiples of 16, as those of real models are: it reads 16 bytes at a
# time then, and keeps fewer addresses.
ALIGNED = re.compile(r"(_ptr|_[behiost]|stride|^hidden|^inner)$")
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, "gfx942": 64 * 1024}
CUOBJDUMP = Path(triton.__path__[0]) / "backends/nvidia/bin/cuobjdump"


def spilled(made: Any) -> tuple[int, int]:
    """Registers of a program for sm_90, and bytes of stack: where registers that did not suffice go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
    return int(registers), int(stack)


def compile_one(kernel: Any, given: dict[str, Any], dtype: str, target: GPUTarget) -> str:
    """What it took. Raises AssertionError where it does not fit the target, or spills on sm_90."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in given else kind(n, dtype) for n in names}
    constants = {n: value for n, value in given.items() if n in signature}
    options = {n: given[n] for n in ("num_warps", "num_stages") if n in given}
    if target.backend == "hip" and "num_stages" in options:
        options["num_stages"] = attention.AMD_STAGES
    attrs = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in constants and ALIGNED.search(n)}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    made = triton.compile(source, target=target, options=options)
    assert made.asm["cubin" if target.backend == "cuda" else "hsaco"]
    assert made.metadata.shared <= SHARED[target.arch], (kernel.__name__, given, target.arch, made.metadata.shared)
    if target.arch != 90 or not CUOBJDUMP.exists():
        return ""
    registers, stack = spilled(made)
    assert stack == 0, (kernel.__name__, dtype, given, f"{stack} bytes of stack")
    return f"{registers} registers, nothing spilled"


def main(modules: list[str]) -> None:
    count = 0
    for kernel, variants in KERNELS.items():
        if modules and kernel.fn.__module__.rpartition(".")[2] not in modules:
            continue
        for given in variants:
            for dtype in given.get("dtypes", ("bf16", "fp16", "fp32")):
                for target in TARGETS:
                    cost = compile_one(kernel, {k: v for k, v in given.items() if k != "dtypes"}, dtype, target)
                    count += 1
                    print("compiled", kernel.__name__, dtype, given, target.arch, cost)
    print(count)


if __name__ == "__main__":
    main(sys.argv[1:])
