"""Each Triton kernel against the machine's limits and against PyTorch:

    python -m minillm.bench kernels [--list] [--json]

For every op: its time at the shapes of an 8B model, the bytes it has to move and the operations it has to do, those as
shares of the bandwidth of a copy and of the rate of a large matrix product measured in the same run, and the ratio to
the PyTorch reference, to torch.compile of it, and for attention to PyTorch's own fused kernel. The last line is JSON.
`--list` needs no GPU.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import cli, reference
from minillm.measure import copy_bandwidth
from minillm.ops import REFERENCE, Ops, select
from minillm.visibility import Visibility

ROUNDS, MATRIX = 20, 8192

# Kernels that stand beside the seam: no call of the model's forward pass, but of training and serving.
BESIDE = {
    "ragged_attention": "attention",
    "paged_decode_attention": "decode_attention",
    "linear_cross_entropy": "cross_entropy",
    "add_rms_norm": "fused_norm",
    "qk_norm_rope_cache": "fused_norm",
    "sample": "sampling",
    "int8_linear": "quant_linear",
    "int4_linear": "quant_linear",
    "fp8_linear": "quant_linear",
}


@dataclass(frozen=True)
class Case:
    """One op at one shape: its arguments, and what no implementation can do without."""

    op: str
    shape: str
    arguments: tuple[Any, ...]
    nbytes: int
    flops: int


def listing() -> list[dict[str, Any]]:
    """Every op and whether it has a Triton version. Looks at files, so that it works where Triton does not."""
    kernels = {path.stem for path in (Path(__file__).parents[1] / "kernels").glob("*.py")}
    kernels |= {path.stem for path in (Path(__file__).parent / "kernels").glob("*.py")}
    files = {"rms_norm": "rms_norm", "rope": "rope", "gated_act": "gated_act", "attention": "attention"}
    files |= {"latent_attention": "mla_decode", "experts": "moe"}
    seam = [field.name for field in dataclasses.fields(Ops)]
    named = {**{name: files.get(name) for name in seam}, **BESIDE}
    return [{"op": op, "triton": file in kernels, "in_model": op in seam} for op, file in named.items()]


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    """Llama-3.1-8B's shapes, DeepSeek-V3's latents, and 64 experts of Qwen3-MoE's kind."""

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    size, heads, kv_heads, dim, wide, tokens, past = 4096, 32, 8, 128, 14336, 4096, 8192
    each = torch.finfo(dtype).bits // 8
    x, w, gate_up = made(tokens, size), made(size), made(tokens, 2 * wide)
    q, k, v = made(1, heads, tokens, dim), made(1, kv_heads, tokens, dim), made(1, kv_heads, tokens, dim)
    cos, sin = made(1, tokens, dim // 2), made(1, tokens, dim // 2)
    one, cache = made(8, heads, 1, dim), [made(8, kv_heads, past, dim) for _ in range(2)]
    latent, q_latent = made(8, past, 576), made(8, 128, 1, 576)
    experts, inner, top_k = 64, 1024, 8
    matrices = made(experts, 2 * inner, 2048), made(experts, 2048, inner)
    whole = Visibility(0, tokens, None, None, device)
    last = Visibility(past - 1, 1, None, None, device)
    found = [
        Case("rms_norm", f"{tokens} x {size}", (x, w, 1e-5), 2 * x.nbytes, 0),
        Case("rope", f"{tokens} x {heads} x {dim}", (q.transpose(1, 2), cos, sin), 2 * q.nbytes, 0),
        Case("gated_act", f"{tokens} x {wide}", (gate_up,), gate_up.nbytes * 3 // 2, 0),
        Case("attention", f"prefill of {tokens}", (q, k, v, whole), 4 * q.nbytes, 2 * heads * tokens**2 * dim),
        Case("attention", f"8 x 1 behind {past}", (one, *cache, last), 2 * cache[0].nbytes, 4 * one.numel() * past),
        Case("latent_attention", f"8 x 1 behind {past}", (q_latent, latent, 512, last, 0.07), latent.nbytes,
             2 * 8 * 128 * past * (576 + 512)),
    ]  # fmt: skip
    for count in (1, 4096):
        rows = made(count, 2048)
        scores = torch.rand(count, experts, device=device)
        weights, chosen = scores.topk(top_k)
        used = min(count * top_k, experts)
        moved = used * (matrices[0].nbytes + matrices[1].nbytes) // experts + 2 * rows.nbytes
        work = 2 * count * top_k * 3 * 2048 * inner
        found.append(Case("experts", f"{count} tokens", (rows, chosen, weights, *matrices, "silu"), moved, work))
    assert each == x.element_size()
    return found


def seconds(call: Callable[[], Any]) -> float:
    """The median time of a call on the GPU, after two to warm up."""
    times = []
    for round_ in range(ROUNDS + 2):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        call()
        ended.record()
        torch.cuda.synchronize()
        if round_ > 1:
            times.append(began.elapsed_time(ended) / 1000)
    return statistics.median(times)


def measured(case: Case, triton: Ops, copy: float, peak: float) -> dict[str, Any]:
    """One row of the table."""
    plain = getattr(REFERENCE, case.op)
    time = seconds(lambda: getattr(triton, case.op)(*case.arguments))
    compiled = torch.compile(plain)
    row = {
        "op": case.op,
        "shape": case.shape,
        "microseconds": time * 1e6,
        "copy_share": case.nbytes / time / copy,
        "matrix_share": case.flops / time / peak,
        "over_reference": seconds(lambda: plain(*case.arguments)) / time,
        "over_compiled": seconds(lambda: compiled(*case.arguments)) / time,
    }
    if case.op == "attention":  # the reference is PyTorch's fused kernel where there is neither cap nor sink
        row["over_sdpa"] = seconds(lambda: reference.attention(*case.arguments)) / time
    return row


def run(as_json: bool) -> None:
    device, dtype = torch.device("cuda"), torch.bfloat16
    if not torch.cuda.is_available():
        raise ValueError("bench kernels times kernels on a GPU, and there is none here; --list needs none")
    triton = select("triton", device, dtype)
    copy = copy_bandwidth(device)
    assert copy is not None
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    peak = 2 * MATRIX**3 / seconds(lambda: torch.mm(a, b))
    rows = [measured(case, triton, copy, peak) for case in cases(device, dtype)]
    report = {"device": torch.cuda.get_device_name(), "copy_gb_per_second": copy / 1e9, "matrix_tflops": peak / 1e12}
    if not as_json:
        print(f"{report['device']}: copies {copy / 1e9:.0f} GB/s, multiplies at {peak / 1e12:.0f} TFLOP/s")
        print(f"{'op':18}{'shape':22}{'us':>9}{'of copy':>9}{'of peak':>9}{'reference':>11}{'compiled':>10}")
        for row in rows:
            print(f"{row['op']:18}{row['shape']:22}{row['microseconds']:9.1f}{row['copy_share']:9.0%}"
                  f"{row['matrix_share']:9.0%}{row['over_reference']:10.2f}x{row['over_compiled']:9.2f}x")  # fmt: skip
    print(json.dumps({**report, "rows": rows}))


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("bench kernels", "Time each Triton kernel against the machine's limits and against PyTorch.")
    parser.add_argument("--list", action="store_true", help="every op and whether it has a Triton version")
    parser.add_argument("--json", action="store_true", help="JSON only")
    arguments = parser.parse_args(argv)

    def body() -> int:
        if not arguments.list:
            run(arguments.json)
            return 0
        found = listing()
        if arguments.json:
            print(json.dumps({"ops": found, "triton_installed": importlib.util.find_spec("triton") is not None}))
            return 0
        for each in found:
            where = "behind the seam" if each["in_model"] else "beside it"
            print(f"{each['op']:24}{'Triton' if each['triton'] else 'PyTorch only':14}{where}")
        return 0

    return cli.run(body)
