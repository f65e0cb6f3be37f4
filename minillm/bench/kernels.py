"""Each Triton kernel against the machine's limits and against PyTorch:

    python -m minillm.bench kernels [--list] [--json] [--only OP ...] [--plot FILE.png] [--tune]

For every op at the shapes of published models (`bench/cases.py`): its time, the bytes it has to move and the operations
it has to do, those as shares of the bandwidth of a copy and of the rate of a large matrix product measured in the same
run, and how many times as long the plain PyTorch version takes, `torch.compile` of it, and PyTorch's own fused kernel
where there is one. The last line is JSON. `--list` needs no GPU.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from minillm import cli
from minillm.bench.cases import Case, Cases, Sizes
from minillm.ops import REFERENCE, Ops, select
from minillm.report import picture, roofline

ROUNDS, MATRIX, COPY_BYTES = 20, 8192, 1 << 30

# The file of each op's kernel, and of those that stand beside the seam: the model does not call them.
FILES = {
    "rms_norm": "rms_norm",
    "add_rms_norm": "fused_norm",
    "rope": "rope",
    "qk_norm_rope_cache": "fused_norm",
    "gated_act": "gated_act",
    "attention": "attention",
    "latent_attention": "mla_decode",
    "paged_attention": "decode_attention",
    "paged_latent_attention": "mla_decode",
    "delta_rule": "delta_rule",
    "delta_step": "delta_step",
    "route": "routing",
    "experts": "moe",
    "grouped_linear": "grouped_linear",
    "fp8_linear": "fp8_linear",
    "linear_cross_entropy": "cross_entropy",
    "sample": "sampling",
}
WITHOUT = (
    *("linear", "add", "cos_sin", "short_conv"),  # PyTorch's own are as good
    "gated_rms_norm",  # of prompts alone, where it is little beside the products; a step has it in its own kernel
    # only CPU loops so far
    *("channel_rule", "gated_conv_step", "short_conv_step", "state_scan", "state_step"),
    *("selective_scan", "selective_step"),
)
BESIDE = {"ragged_attention": "attention"}


def listing() -> list[dict[str, Any]]:
    """Every op and whether it has a Triton version. Looks at files, so that it works where Triton does not."""
    kernels = {path.stem for path in (Path(__file__).parents[2] / "kernels").glob("*.py")}
    kernels |= {path.stem for path in (Path(__file__).parents[1] / "kernels").glob("*.py")}
    seam = [field.name for field in dataclasses.fields(Ops) if field.name not in ("tile", "ranks")]
    named = {**{name: FILES.get(name) for name in seam if name not in WITHOUT}, **BESIDE}
    return [{"op": op, "triton": file in kernels, "file": file, "in_ops": op in seam} for op, file in named.items()]


def measured(case: Case, triton: Ops, copy: float, peak: float, seconds: Callable[..., float]) -> dict[str, Any]:
    """One row: times in seconds, and how many times as long the others take; None where they cannot or are not."""

    def ratio(call: Callable[[], Any]) -> float | None:
        try:
            return seconds(call, ROUNDS) / time
        except RuntimeError as error:  # out of memory, or a shape that PyTorch's kernel does not take
            print(f"minillm: {case.op}, {case.shape}: {str(error).splitlines()[0]}", file=sys.stderr)
            return None

    time = seconds(lambda: case.run(triton), ROUNDS)
    compiled: dict[str, Any] = {case.op: torch.compile(getattr(REFERENCE, case.op))} if case.plain else {}
    return {
        "op": case.op,
        "shape": case.shape,
        "seconds": time,
        "bytes": case.nbytes,
        "flops": case.flops,
        "copy_share": case.nbytes / time / copy,
        "matrix_share": case.flops / time / peak,
        "over_reference": ratio(lambda: case.run(REFERENCE)) if case.plain else None,
        "over_compiled": ratio(lambda: case.run(dataclasses.replace(REFERENCE, **compiled))) if case.plain else None,
        "over_sdpa": ratio(case.sdpa) if case.sdpa else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown, for docs/benchmarks.md."""
    names = ("op", "shape", "us", "MB", "GFLOP", "of copy", "of peak", "PyTorch", "compiled", "SDPA")
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        ratios = [row[f"over_{name}"] for name in ("reference", "compiled", "sdpa")]
        cells = [row["op"], row["shape"], f"{row['seconds'] * 1e6:.1f}", f"{row['bytes'] / 1e6:.1f}"]
        cells += [f"{row['flops'] / 1e9:.2f}", f"{row['copy_share']:.0%}", f"{row['matrix_share']:.0%}"]
        lines.append("| " + " | ".join(cells + ["" if each is None else f"{each:.2f}x" for each in ratios]) + " |")
    return "\n".join(lines)


def limits(device: torch.device, dtype: torch.dtype, seconds: Callable[..., float]) -> tuple[float, float]:
    """Bytes per second that a copy reads and writes, and operations per second of a large product."""
    one, other = torch.zeros(2, COPY_BYTES, dtype=torch.uint8, device=device)
    copy = 2 * COPY_BYTES / seconds(lambda: other.copy_(one), ROUNDS)
    a, b = torch.randn(2, MATRIX, MATRIX, device=device, dtype=dtype)
    return copy, 2 * MATRIX**3 / seconds(lambda: torch.mm(a, b), ROUNDS)


def run(only: list[str], plot: str | None, tune: bool) -> dict[str, Any]:
    """Everything, on the first GPU."""
    if not torch.cuda.is_available():
        raise ValueError("bench kernels times kernels on a GPU, and there is none here; --list needs none")
    device, dtype = torch.device("cuda", 0), torch.bfloat16
    triton = select("triton", device, dtype)
    from minillm.kernels import tuning

    if tune:
        tuning.forget(device)
    copy, peak = limits(device, dtype, tuning.seconds)
    rows = []
    with torch.inference_mode(False), torch.no_grad():
        for case in Cases(device, dtype, Sizes()).all():
            if not only or case.op in only:
                print(f"timing {case.op}, {case.shape}", file=sys.stderr)
                rows.append(measured(case, triton, copy, peak, tuning.seconds))
    name = torch.cuda.get_device_name(device)
    if plot:
        roofline.draw(Path(plot), rows, copy, peak, name)
    return {"device": name, "copy_gb_per_second": copy / 1e9, "matrix_tflops": peak / 1e12, "rows": rows}


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("bench kernels", "Time each Triton kernel against the machine's limits and against PyTorch.")
    parser.add_argument("--list", action="store_true", help="every op and whether it has a Triton version")
    parser.add_argument("--json", action="store_true", help="JSON only")
    parser.add_argument("--only", nargs="+", default=[], metavar="OP", choices=[*FILES, *BESIDE], help="these ops only")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the roofline; needs '.[plot]'")
    parser.add_argument("--tune", action="store_true", help="choose every configuration anew")
    arguments = parser.parse_args(argv)
    if arguments.list and (arguments.only or arguments.plot or arguments.tune):
        parser.error("--list times nothing: --only, --plot and --tune mean nothing to it")
    if arguments.list:
        show_list(arguments.json)
        return 0
    if arguments.plot:
        picture.check(Path(arguments.plot))
    report = run(arguments.only, arguments.plot, arguments.tune)
    if not arguments.json:
        print(f"{report['device']}: copies {report['copy_gb_per_second']:.0f} GB/s, multiplies at "
              f"{report['matrix_tflops']:.0f} TFLOP/s\n\n{table(report['rows'])}\n")  # fmt: skip
    print(json.dumps(report))
    return 0


def show_list(as_json: bool) -> None:
    found = listing()
    if as_json:
        print(json.dumps({"ops": found, "triton_installed": importlib.util.find_spec("triton") is not None}))
        return
    for each in found:
        where = "in Ops" if each["in_ops"] else "beside it"
        print(f"{each['op']:24}{'Triton' if each['triton'] else 'PyTorch only':14}{where}")
