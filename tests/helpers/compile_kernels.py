"""Compile every kernel for GPUs that need not be here; run by test_kernels.py without Triton's interpreter.

    python tests/helpers/compile_kernels.py [--few] [MODULE …]

MODULEs are those of `kernels/`. The tests compile a few of each; without --few it is every variant on every GPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parents[2]))

from minillm.kernels import (
    attention,
    attention_backward,
    cross_entropy,
    decode_attention,
    delta_rule,
    delta_step,
    fp8_linear,
    fused_norm,
    gated_act,
    grouped_linear,
    mla_decode,
    moe,
    rms_norm,
    rope,
    routing,
    sampling,
)
from minillm.kernels.online_softmax import padded
from minillm.kernels.tuning import EVERY, Config
from tests.helpers.ahead_of_time import TARGETS, compile_one

# Of the attention kernels: with everything, and with nothing, at the head sizes of their configurations.
PLAIN = {"HAS_FIRST": False, "HAS_CAP": False, "WINDOW": 0}
FULL = {"HAS_FIRST": True, "HAS_CAP": True, "WINDOW": 128}
HALF, SINGLE = ("bf16",), ("fp32",)


def heads(dim: int, value_dim: int) -> dict[str, int]:
    dim = 192 if dim > value_dim else dim  # as in DeepSeek-V3
    return {"D": dim, "V": value_dim, "BLOCK_D": padded(dim), "BLOCK_V": padded(value_dim)}


def configured(table: tuple[Config, ...], names: tuple[str, ...], dtypes: tuple[str, ...], **more: Any) -> list[dict]:
    """A launch with each configuration, on the GPUs that it is for."""
    found = []
    for config in table:
        options = config.paged_options if more.get("PAGED") else config.options
        blocks = dict(zip(names, config.blocks, strict=True))
        found.append({**blocks, **options, **more, "on": config.on, "dtypes": dtypes})
    return found


def attending(tables: dict[tuple[int, int], tuple[Config, ...]], **more: Any) -> list[dict[str, Any]]:
    """In bf16 with everything and, where registers are counted, with nothing; in fp16 at one size, in fp32 with its own
    blocks."""
    names, found = ("BLOCK_Q", "BLOCK_K"), []
    for size, table in tables.items():
        dtypes = ("bf16", "fp16") if size == (128, 128) else HALF
        found += configured(table, names, dtypes, **FULL, **heads(*size), **more)
        plain = [config._replace(on=("sm_90",)) for config in table if "sm_90" in config.on]
        found += configured(tuple(plain), names, HALF, **PLAIN, **heads(*size), **more)
        if size in attention.FP32:
            found += configured(attention.FP32[size], names, SINGLE, **FULL, **heads(*size), **more)
    return found


def decoding(paged: bool, lengths: bool = True) -> list[dict[str, Any]]:
    made, names = FULL if paged else PLAIN, ("BLOCK_S",)
    more = {"PAGED": paged, "HAS_LENGTHS": lengths}
    return [
        each
        for size in attention_backward.CONFIGS
        for table, dtypes in ((decode_attention.CONFIGS, HALF), (decode_attention.FP32, SINGLE))
        for share in (4, 71)
        for each in configured(table, names, dtypes, **made, **heads(*size), **more, G=share, BLOCK_G=16)
        if share == 4 or size == (128, 128)
    ]


def latent(paged: bool, lengths: bool = True) -> list[dict[str, Any]]:
    sizes = {"R": 512, "P": 64, "BLOCK_R": 512, "BLOCK_P": 64}
    more = {"HAS_FIRST": paged, "PAGED": paged, "HAS_LENGTHS": lengths, **sizes}
    return configured(mla_decode.CONFIGS, ("BLOCK_H", "BLOCK_S"), HALF, **more) + configured(
        mla_decode.FP32, ("BLOCK_H", "BLOCK_S"), SINGLE, **more
    )


def in_chunks() -> list[dict[str, Any]]:
    """At the heads of Qwen3.5, and of Olmo-Hybrid, whose keys and values differ in width."""
    return [
        each
        for k, v in ((128, 128), (96, 192))
        for each in configured(delta_rule.CONFIGS, ("C", "TILE", "DEPTH"), ("bf16", "fp32"), K=k, V=v)
    ]


def grouping(**more: Any) -> list[dict[str, Any]]:
    """Matrices of either layout: a stride of 1 is a constant to a launch."""
    names = ("ROWS", "TILE", "DEPTH")
    return [
        each
        for stride in ("w_i", "w_o")
        for table, dtypes in ((moe.CONFIGS, HALF), (moe.FP32, SINGLE))
        for each in configured(table, names, dtypes, **{stride: 1}, HAS_BIAS=True, **more)
    ]


def of_fp8() -> list[dict[str, Any]]:
    names, more = ("ROWS", "TILE", "DEPTH"), {"HAS_BIAS": False, "WIDTH": fp8_linear.BLOCK}
    tables = ((fp8_linear.FEW, HALF), (fp8_linear.MANY, HALF), (fp8_linear.FP32, SINGLE))
    return [each for table, dtypes in tables for each in configured(table, names, dtypes, **more)]


# Parts that a form of matrices has, the type of its scales, and what else of it a launch is bound to.
FORMS: tuple[tuple[str, dict[str, int]], ...] = (
    ("high factor least floor", {"BITS": 5, "ZERO": 0, "GROUP": 32, "SPAN": 256, "ROUNDED": 0}),
    ("", {"BITS": 4, "ZERO": 8, "GROUP": 32, "SPAN": 0, "ROUNDED": 0}),
    ("", {"BITS": 8, "ZERO": 128, "GROUP": 0, "SPAN": 0, "ROUNDED": 0}),
    ("zero_u8", {"BITS": 4, "ZERO": 0, "GROUP": 128, "SPAN": 0, "ROUNDED": 0}),
    ("factor", {"BITS": 4, "ZERO": 8, "GROUP": 16, "SPAN": 0, "ROUNDED": 0}),
    ("factor zero_u8", {"BITS": 4, "ZERO": 0, "GROUP": 16, "SPAN": 0, "ROUNDED": 0}),
    ("table_f32", {"BITS": 4, "ZERO": 0, "GROUP": 64, "SPAN": 0, "ROUNDED": 2}),
    ("high factor", {"BITS": 6, "ZERO": 32, "GROUP": 16, "SPAN": 0, "ROUNDED": 0}),
    ("factor least floor", {"BITS": 4, "ZERO": 0, "GROUP": 32, "SPAN": 256, "ROUNDED": 0}),
)
OPTIONAL = ("factor", "zero_u8", "least", "floor", "table_f32", "b")


def in_groups(table: tuple[Config, ...], dtypes: tuple[str, ...], alone: bool = False) -> list[dict[str, Any]]:
    """The first form with each configuration, the others with the first; `alone`: of the kernel for one row of x."""
    made, plane = [], "high_i32" if alone else "high_u8"
    table = tuple(config for config in table if (config.blocks[0] == 1) == alone)
    for given, form in FORMS:
        has = given.replace("high", plane).split()
        absent = {f"{name}_ptr": None for name in (*OPTIONAL, plane) if name not in has}
        codes = {f"{name}_ptr": "*i8" for name in ("s", "least") if "factor" in has}
        names = ("ROWS", "TILE", "WORDS" if alone else "DEPTH")
        for each in configured(table if made == [] else table[:1], names, dtypes, **absent, **form, types=codes):
            made.append(each if alone else {**each, "RUN": min(form["GROUP"] or 128, each["DEPTH"])})
    return made


FEW = ("TILE", "DEPTH")
ROUTED = {"HAS_CORRECTION": True, "RENORMALIZE": True, "TWO": True, "TOP_K": 8, "BLOCK_K": 8, "PAD": routing.PAD}
ROUTED |= {"num_warps": 1, "dtypes": SINGLE}
SORTED = {"ROWS": 64, "PAD": routing.PAD, "dtypes": SINGLE}
# kernel -> each set of constants it is launched with
KERNELS = {
    rms_norm.forward_kernel: [{"BEFORE_WEIGHT": before, "BLOCK": 4096, "num_warps": 16} for before in (True, False)],
    rms_norm.backward_kernel: [{"BLOCK": 4096, "num_warps": 16}],
    rope.rope_kernel: [
        {"INTERLEAVED": pairs, "HEADS": rope.MOST_HEADS, "HALF": 64, "REST": rest}
        for pairs in (True, False)
        for rest in (0, 32)
    ],
    gated_act.forward_kernel: [{"ACTIVATION": kind, "BLOCK": gated_act.BLOCK} for kind in (0, 1, 2, 3)],
    gated_act.backward_kernel: [{"ACTIVATION": kind, "BLOCK": gated_act.BLOCK} for kind in (0, 1, 2, 3)],
    attention.forward_kernel: attending(attention.CONFIGS, RAGGED=False, HAS_SINKS=True)
    + attending({(128, 128): attention.CONFIGS[128, 128]}, RAGGED=True, HAS_SINKS=False),
    attention_backward.key_kernel: attending(attention_backward.CONFIGS, G=4),
    attention_backward.query_kernel: attending(attention_backward.CONFIGS, G=4),
    decode_attention.part_kernel: decoding(False, False) + decoding(False) + decoding(True),
    decode_attention.join_kernel: [{"HAS_SINKS": True, "V": 128, "BLOCK_V": 128, "BLOCK_P": 64}],
    mla_decode.part_kernel: latent(False, False) + latent(False) + latent(True),
    delta_rule.solve_kernel: in_chunks(),
    delta_rule.scan_kernel: in_chunks(),
    delta_step.step_kernel: [
        {"HAS_ROWS": has, "TAPS": 4, "K": k, "V": v, "BLOCK_K": padded(k), "BLOCK_V": padded(v)}
        | {"DEPTH": delta_step.DEPTH, "num_warps": delta_step.WARPS}
        for has, k, v in ((False, 128, 128), (True, 128, 128), (True, 96, 192))
    ],
    moe.gate_up_kernel: grouping(ACTIVATION=0, x_t=2048),
    moe.down_kernel: [{**each, "TILE": 2 * each["TILE"]} for each in grouping()],
    moe.few_gate_up_kernel: configured(moe.FEW_CONFIGS, FEW, ("bf16", "fp32"), HAS_BIAS=False, ACTIVATION=0, w_i=1),
    moe.few_down_kernel: configured(moe.FEW_CONFIGS, FEW, ("bf16", "fp32"), HAS_BIAS=False, w_i=1),
    moe.combine_kernel: [{"BLOCK": moe.COMBINED}],
    routing.route_kernel: [
        {**ROUTED, "SCORE": score, "TOP_GROUPS": groups, "BLOCK_G": block, "BLOCK_M": 256 // block}
        for score, groups, block in ((0, 0, 1), (1, 4, 8), (2, 0, 1))
    ],
    routing.count_kernel: [{"BLOCK": 256, "PAD": routing.PAD, "dtypes": SINGLE}],
    routing.sort_kernel: [
        {**SORTED, "BLOCK": routing.PLACES, "BLOCK_E": 256},
        {**SORTED, "BLOCK": routing.PLACES // 4, "BLOCK_E": routing.LARGEST},
    ],
    cross_entropy.loss_kernel: [
        {"HAS_CAP": cap, "GRADIENT": True, "BLOCK": cross_entropy.BLOCK, "num_warps": cross_entropy.WARPS}
        for cap in (True, False)
    ],
    fp8_linear.product_kernel: of_fp8(),
    grouped_linear.row_kernel: in_groups(grouped_linear.ONE, HALF, True)
    + in_groups(grouped_linear.FP32_ONE, SINGLE, True),
    grouped_linear.rows_kernel: in_groups(grouped_linear.FEW, HALF)
    + in_groups(grouped_linear.MANY, HALF)
    + in_groups(grouped_linear.FP32, SINGLE),
    grouped_linear.join_kernel: [{"b_ptr": None, "BLOCK": grouped_linear.JOINED}],
    fused_norm.add_kernel: [{"BEFORE_WEIGHT": True, "BLOCK": 4096, "num_warps": 16}],
    fused_norm.heads_kernel: [
        {"HAS_NORM": True, "BEFORE_WEIGHT": True, "INTERLEAVED": pairs, "HALF": half, "D": 128, "BLOCK": 128}
        | {"HEADS": fused_norm.MOST_HEADS}
        for pairs, half in ((False, 64), (True, 32))
    ],
    sampling.sample_kernel: [{"SHOW": False, "BLOCK": sampling.BLOCK, "num_warps": sampling.WARPS}],
}  # fmt: skip


class Launch(NamedTuple):
    constants: dict[str, Any]
    dtype: str
    on: tuple[str, ...]

    def shows(self, name: str) -> set[tuple[str, str]]:
        """What a choice has once: each type; for the first GPU of each maker each value of a constant that is no size;
        and on sm_90, where registers are counted, and where it is not for that, each configuration."""
        shown = {("type", self.dtype)}
        rest = {n: str(value) for n, value in self.constants.items() if n not in SIZES and not n.startswith("BLOCK")}
        if name in ("sm_90", "gfx942"):
            shown |= set(rest.items())
        if name == "sm_90" or "sm_90" not in self.on:
            shown.add(("sizes", str({n: value for n, value in self.constants.items() if n not in rest})))
        return shown


SIZES = set("D V K C R P G ROWS TILE DEPTH WORDS HALF HEADS REST PAD GROUP SPAN RUN num_warps num_stages".split())


def launches(kernel: Any, name: str, few: bool, most: Launch | None) -> Iterator[Launch]:
    """All that are for a GPU, or a `few`: those that show something first, and `most`, which takes most memory."""
    seen = set[tuple[str, str]]()
    for given in KERNELS[kernel]:
        constants = {k: v for k, v in given.items() if k not in ("dtypes", "on")}
        for dtype in given.get("dtypes", ("bf16", "fp16", "fp32")):
            launch = Launch(constants, dtype, given.get("on", EVERY))
            if name in launch.on and (not few or launch == most or launch.shows(name) - seen):
                seen |= launch.shows(name)
                yield launch


def main(arguments: list[str]) -> None:
    few, modules, count = "--few" in arguments, [each for each in arguments if each != "--few"], 0
    for kernel in KERNELS:
        module, took = kernel.fn.__module__.rpartition(".")[2], list[tuple[int, Launch]]()
        if modules and module not in modules:
            continue
        for name in TARGETS:  # sm_90 first
            fitting = [each for each in took if name in each[1].on]
            most = max(fitting, key=lambda each: each[0])[1] if fitting else None
            for launch in launches(kernel, name, few, most):
                shared, cost = compile_one(kernel, launch.constants, launch.dtype, name)
                took += [(shared, launch)] if name == "sm_90" else []
                count += 1
                print(f"{module}.{kernel.__name__} {launch.dtype} {launch.constants} on {name}: {cost}", flush=True)
    print(count)


if __name__ == "__main__":
    main(sys.argv[1:])
