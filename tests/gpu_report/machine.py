"""Where this runs, and what the machine does at best: the rest is measured against that."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess

import torch

from minillm.bench import kernels as bench
from tests.gpu_report.timing import seconds
from tests.gpu_report.worker import Item, Run

PACKAGES = ("einops", "tqdm", "pytest", "hypothesis", "safetensors", "numpy", "tokenizers", "transformers")  # if there


def items(run: Run) -> list[Item]:
    return [("environment", lambda: environment(run)), ("limits", lambda: limits(run))]


def environment(run: Run) -> None:
    found = {"python": platform.python_version(), "torch": torch.__version__, "CUDA of torch": torch.version.cuda}
    found["triton"] = version("triton")
    here = torch.cuda.is_available()
    if here and not run.rehearse:
        of = torch.cuda.get_device_properties(run.device)
        found |= {"GPU": of.name, "driver": driver(), "compute capability": f"{of.major}.{of.minor}"}
        found |= {"multiprocessors": of.multi_processor_count, "GPU memory, GiB": round(of.total_memory / 2**30, 1)}
    for name, value in found.items():
        run.row({"value": value}, item=name)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    run.row(message=packages, item="packages", facts={"gpu": here or run.rehearse})


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def limits(run: Run) -> None:
    if run.rehearse:
        run.patch.setattr(bench, "COPY_BYTES", 1 << 20)
        run.patch.setattr(bench, "MATRIX", 64)
    copy, peak = bench.limits(run.device, run.dtype, seconds(run.device))
    facts = {"copy": copy, "peak": peak}
    run.row({"value": copy / 1e9}, item="copy, GB/s read and written", facts=facts)
    run.row({"value": peak / 1e12}, item=f"product of {bench.MATRIX} squared in {run.dtype}, TFLOP/s")
