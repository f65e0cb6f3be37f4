"""Loading takes at most the checkpoint's bytes, its largest tensor and 300 MB, of which PyTorch itself is 220."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from minillm import families
from minillm.model import Decoder
from minillm.weights.save import save

ALLOWANCE = 300e6
SCRIPT = """
import sys, minillm
from minillm.measure import peak_memory
llm = minillm.load(sys.argv[1], kernels=sys.argv[2])
print(peak_memory(llm.device), next(llm.model.parameters()).dtype)
"""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def big(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of half a gigabyte in bf16, an embedding and few layers."""
    folder = tmp_path_factory.mktemp("big")
    config = {
        "model_type": "qwen2",
        "vocab_size": 50_000,
        "hidden_size": 1024,
        "intermediate_size": 8192,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": request.param,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    spec, rules, _ = families.resolve(config)
    with torch.device("meta"):
        model = Decoder(spec)
    parameters = {n: torch.ones(p.shape, dtype=torch.bfloat16) for n, p in model.named_parameters()}
    save(folder / "model.safetensors", parameters, rules, model.destinations())
    return folder


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_peak_of_a_load(big: Path, kernels: str, layout: str, tmp_path: Path) -> None:
    folder, file = big, big / "model.safetensors"
    if layout == "bin":
        from safetensors.torch import load_file

        folder, file = tmp_path, tmp_path / "pytorch_model.bin"
        torch.save(load_file(big / "model.safetensors"), file)
        (tmp_path / "config.json").write_text((big / "config.json").read_text())
    largest = 50_000 * 1024 * 2
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
