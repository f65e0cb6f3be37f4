"""Loading takes at most the checkpoint's bytes, its largest tensor and 300 MB, of which PyTorch itself is 220."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from minillm import families
from minillm.model import Decoder
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.save import save

ALLOWANCE = 300e6
SCRIPT = """
import sys, minillm
from minillm.measure import peak_memory
llm = minillm.load(sys.argv[1], kernels=sys.argv[2])
print(peak_memory(llm.device), next(llm.model.parameters()).dtype)
"""

DENSE = {
    "model_type": "qwen2",
    "vocab_size": 50_000,
    "hidden_size": 1024,
    "intermediate_size": 8192,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "torch_dtype": "bfloat16",
}
# Half a gigabyte of bf16 each: an embedding and few layers, or layers of many experts, of which a second copy of one
# layer's gates and ups, 100 MB, would not fit.
CONFIGS = {
    "tied": {**DENSE, "tie_word_embeddings": True},
    "untied": {**DENSE, "tie_word_embeddings": False},
    "experts": {
        **DENSE,
        "model_type": "qwen3_moe",
        "vocab_size": 20_000,
        "num_hidden_layers": 3,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "tie_word_embeddings": True,
        "moe_intermediate_size": 192,
    },
}


@pytest.fixture(scope="module")
def big(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the checkpoints in bf16."""
    folder, config = tmp_path_factory.mktemp("big"), CONFIGS[request.param]
    (folder / "config.json").write_text(json.dumps(config))
    spec, rules, _ = families.resolve(config)
    with torch.device("meta"):
        model = Decoder(spec)
    parameters = {n: torch.ones(p.shape, dtype=torch.bfloat16) for n, p in model.named_parameters()}
    save(folder / "model.safetensors", parameters, rules, model.destinations())
    return folder


@pytest.mark.parametrize(
    ("big", "layout"),
    [
        ("tied", "safetensors"),
        ("tied", "bin"),
        ("untied", "safetensors"),
        ("untied", "bin"),
        ("experts", "safetensors"),
    ],
    indirect=["big"],
    scope="module",
)
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_peak_of_a_load(big: Path, kernels: str, layout: str, tmp_path: Path) -> None:
    folder, file = big, big / "model.safetensors"
    if layout == "bin":
        from safetensors.torch import load_file

        folder, file = tmp_path, tmp_path / "pytorch_model.bin"
        torch.save(load_file(big / "model.safetensors"), file)
        (tmp_path / "config.json").write_text((big / "config.json").read_text())
    largest = max(math.prod(info.shape) for info in Checkpoint(big).info.values()) * torch.bfloat16.itemsize
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), kernels],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    peak, dtype = done.stdout.split()
    if dtype != "torch.bfloat16":
        pytest.skip("this CPU has no bf16: the load converts, and the limit is for loads that do not")
    assert int(peak) <= file.stat().st_size + largest + ALLOWANCE
