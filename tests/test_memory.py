"""Loading takes at most the bytes of the parameters and 300 MB, of which PyTorch itself is 220; from `.bin` files and
for what must be laid out otherwise one tensor more. So do the first tokens.

    python -m tests.test_memory [FORM …]      # the table of docs/formats.md
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from minillm import families
from minillm.adapters.attach import attach
from minillm.adapters.build import Base
from minillm.adapters.config import AdapterConfig
from minillm.model.decoder import Decoder, skeleton
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.save import published, save
from tests.conftest import ROOT
from tests.helpers import packed_models

ALLOWANCE = 300e6
SCRIPT = """
import sys, minillm, torch
from minillm.report.measure import peak_memory
imported = peak_memory(torch.device("cpu"))
llm = minillm.load(sys.argv[1], kernels=sys.argv[2], quantize=sys.argv[3] or None)
loaded, sizes = peak_memory(llm.device), sum(each.nbytes for each in llm.model.parameters())
if sys.argv[2] == "reference":  # the other's loops are compiled at first
    llm.generate(prompt_ids=[1, 2, 3], max_new_tokens=2)
print(loaded, peak_memory(llm.device), sizes, llm.model.dtype, imported)
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
        ("experts", "stacked"),
    ],
    indirect=["big"],
    scope="module",
)
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_peak_of_a_load(big: Path, kernels: str, layout: str, tmp_path: Path) -> None:
    folder, more = big, 0
    if layout == "bin":
        from safetensors.torch import load_file

        folder = tmp_path
        torch.save(load_file(big / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text((big / "config.json").read_text())
        more = max(math.prod(info.shape) for info in Checkpoint(big).info.values()) * torch.bfloat16.itemsize
    if layout == "stacked":  # the tensor of a layer's gates and ups is read into its place, and not beside it
        folder = tmp_path
        stack(big, tmp_path)
    loaded, ran, sizes, dtype, _ = peaks(folder, kernels)
    if dtype != "torch.bfloat16":
        pytest.skip("this CPU has no bf16: the load converts, and the limit is for loads that do not")
    assert loaded <= sizes + more + ALLOWANCE
    assert ran <= sizes + more + ALLOWANCE


def stack(folder: Path, into: Path) -> None:
    """The same checkpoint with all experts of a layer in one tensor, as transformers 5 can write it."""
    from safetensors.torch import load_file, save_file

    values = json.loads((folder / "config.json").read_text())
    named, experts = load_file(folder / "model.safetensors"), range(values["num_experts"])
    for i in range(values["num_hidden_layers"]):
        stem, parts = f"model.layers.{i}.mlp.experts", ("gate_proj", "up_proj", "down_proj")
        gate, up, down = (torch.stack([named.pop(f"{stem}.{e}.{part}.weight") for e in experts]) for part in parts)
        named |= {f"{stem}.gate_up_proj": torch.cat((gate, up), dim=1), f"{stem}.down_proj": down}
    save_file(named, into / "model.safetensors")
    (into / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("big", ["untied", "experts"], indirect=True, scope="module")
def test_peak_of_quantising(big: Path, scheme: str) -> None:
    """That of the integers: the plain matrices, half a gigabyte, are never there."""
    loaded, _, sizes, _, _ = peaks(big, "auto", scheme)
    assert sizes <= (big / "model.safetensors").stat().st_size * (0.51 if scheme == "int8" else 0.39)
    assert loaded <= sizes + ALLOWANCE


MERGE = """
import sys, minillm, torch
from minillm import merge
from minillm.report.measure import peak_memory
given = ["--weights", sys.argv[1], "--adapter", sys.argv[2], "--output", sys.argv[3], "--no-compare", *sys.argv[4:]]
assert merge.main(given) == 0
print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.parametrize("more", [[], ["--dtype", "float32"], ["--quantize", "int4"]])
@pytest.mark.parametrize("big", ["tied", "experts"], indirect=True, scope="module")
def test_peak_of_merging(big: Path, more: list[str], tmp_path: Path) -> None:
    """Half a gigabyte of weights, of which no tensor is ever whole; the adapter is, with all that PEFT saves of it."""
    values = json.loads((big / "config.json").read_text())
    targets = {"target_modules": ["q_proj", "down_proj", "embed_tokens"]}
    if values["model_type"] != "qwen2":
        targets = {"target_modules": ["o_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    llm = Base(skeleton(families.resolve(values)[0], torch.bfloat16), values, torch.device("cpu"))
    adapter = attach(llm, AdapterConfig(r=4, **targets))
    adapter.write(tmp_path / "adapter")
    done = subprocess.run(
        [sys.executable, "-c", MERGE, str(big), str(tmp_path / "adapter"), str(tmp_path / "made"), *more],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak, held = int(done.stdout.split()[-1]), sum(each.nbytes for each in adapter.parameters())
    print(big.name, more, peak // 10**6, held // 10**6)
    assert peak <= held + ALLOWANCE


GPT_OSS = {
    **DENSE,
    "model_type": "gpt_oss",
    "vocab_size": 20_000,
    "num_hidden_layers": 3,
    "head_dim": 128,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "intermediate_size": 1024,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(("config", "section"), [
    ({**DENSE, "tie_word_embeddings": False}, {"bits": 4, "group_size": 64}), (GPT_OSS, {"quant_method": "mxfp4"}),
], ids=["mlx", "mxfp4"])  # fmt: skip
def test_peak_of_what_stays_quantised(config: dict, section: dict, tmp_path: Path) -> None:
    """That of the parts: half a gigabyte and more of plain numbers are never there, nor are all experts that lie in one
    tensor unpacked at once."""
    config = {**config, "quantization_config": section}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec, rules, _ = families.resolve(config)
    with torch.device("meta"):
        model = Decoder(spec)
    tensors, plain = dict[str, torch.Tensor](), 0
    rules = {name: to for name, to in rules.items() if f"{name}_blocks" not in rules}
    for name, to in published(rules, model.destinations()).items():
        *high, wide = shape = to.stored_shape
        plain += 2 * math.prod(shape)
        if name.endswith("_blocks"):
            tensors[name] = torch.randint(256, (*high, wide // 32, 16), dtype=torch.uint8)
            tensors[f"{name.removesuffix('blocks')}scales"] = torch.full((*high, wide // 32), 120, dtype=torch.uint8)
        elif len(shape) == 2 and "bits" in section:
            tensors[name] = torch.randint(-(2**31), 2**31, (*high, wide // 8), dtype=torch.int32).view(torch.uint32)
            for each in ("scales", "biases"):
                tensors[f"{name.removesuffix('weight')}{each}"] = torch.full((*high, wide // 64), 2**-9).bfloat16()
        else:
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors")
    stored = (tmp_path / "model.safetensors").stat().st_size
    del tensors
    loaded, _, sizes, dtype, _ = peaks(tmp_path, "auto")
    assert dtype == "torch.bfloat16" or stored < sizes  # without fast bf16 the rest is in fp32
    assert sizes <= 1.05 * stored if dtype == "torch.bfloat16" else sizes <= 1.6 * stored
    assert plain > 2 * stored
    assert loaded <= sizes + ALLOWANCE


@pytest.mark.parametrize("form", [*packed_models.FORMS, *packed_models.BLOCKS])
def test_peak_of_each_form(form: str, tmp_path: Path) -> None:
    """The bytes of the file and 150 MB, beside what an import takes: two to four times as many of plain numbers are
    never there, and neither is the file twice."""
    stored, found = of_form(form, tmp_path)
    assert found.sizes <= 1.13 * stored  # the factors of NVFP4 have 16 bits here
    assert found.loaded <= found.imported + stored + 150e6


def of_form(form: str, folder: Path) -> tuple[int, Peaks]:
    """The bytes of the file and the peaks of 224 million weights in a form."""
    config = {**DENSE, "vocab_size": 2000, "num_hidden_layers": 8, "tie_word_embeddings": False}
    weights = packed_models.write(folder, config, form)
    return sum(path.stat().st_size for path in folder.glob("model.*")), peaks(weights, "auto")


class Peaks(NamedTuple):
    """Of a process that loads a checkpoint: bytes held at most until then, and until it has generated; the bytes of the
    parameters; the dtype; and the bytes held before the load."""

    loaded: int
    ran: int
    sizes: int
    dtype: str
    imported: int


def peaks(folder: Path, kernels: str, scheme: str = "") -> Peaks:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), kernels, scheme],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    loaded, ran, sizes, dtype, imported = done.stdout.split()
    return Peaks(int(loaded), int(ran), int(sizes), dtype, int(imported))


def main(forms: list[str]) -> None:
    """A line for each form: MB of the file, of the parameters, at the peak, and of these before the load."""
    print(f"{'':16}{'file':>8}{'loaded':>8}{'peak':>8}{'import':>8}")
    for form in forms or [*packed_models.FORMS, *packed_models.BLOCKS]:
        with tempfile.TemporaryDirectory() as folder:
            stored, found = of_form(form, Path(folder))
        sizes = (stored, found.sizes, found.loaded, found.imported)
        print(f"{form:16}" + "".join(f"{each / 1e6:8.0f}" for each in sizes), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
