"""Loading takes at most the bytes of the parameters and 300 MB, of which PyTorch itself is 220; from `.bin` files and
for what must be laid out otherwise one tensor more. So do the first tokens. All processes but one are
forked from one that has imported PyTorch, and may take ALLOWANCE more than they begin with.

    python -m tests.test_memory [FORM …]      # the table of docs/formats.md
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from minillm import families
from minillm.adapters.attach import attach
from minillm.adapters.build import Base
from minillm.adapters.config import AdapterConfig
from minillm.model.decoder import Decoder, skeleton
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.save import published, save
from tests.conftest import ROOT
from tests.helpers import packed_models
from tests.parallel.forks import Forks, Run

ALLOWANCE = 80e6  # what an import leaves of the 300 MB
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
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    if sys.platform != "linux":
        pytest.skip("forks processes, and asks /proc what they hold")
    made = Forks(tmp_path_factory.mktemp("forks"), ["tests.helpers.peaks", "minillm.ops.cpu.ops"])
    yield made
    made.close()


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
    ("big", "layout", "kernels"),
    [
        ("tied", "safetensors", "auto"),
        ("tied", "bin", "reference"),
        ("untied", "safetensors", "reference"),
        ("untied", "bin", "auto"),
        ("experts", "safetensors", "auto"),
        ("experts", "safetensors", "reference"),
        ("experts", "stacked", "reference"),
    ],
    indirect=["big"],
    scope="module",
)
def test_peak_of_a_load(big: Path, layout: str, kernels: str, forks: Forks, tmp_path: Path) -> None:
    folder, more = big, 0
    if layout == "bin":
        folder = tmp_path
        torch.save(load_file(big / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text((big / "config.json").read_text())
        more = max(math.prod(info.shape) for info in Checkpoint(big).info.values()) * torch.bfloat16.itemsize
    if layout == "stacked":  # the tensor of a layer's gates and ups is read into its place, and not beside it
        folder = tmp_path
        stack(big, tmp_path)
    found = peaks(forks, folder, kernels)
    if found.dtype != "torch.bfloat16":
        pytest.skip("this CPU has no bf16: the load converts, and the limit is for loads that do not")
    assert found.loaded <= found.imported + found.sizes + more + ALLOWANCE
    assert found.ran <= found.imported + found.sizes + more + ALLOWANCE


@pytest.mark.parametrize("big", ["tied"], indirect=True, scope="module")
def test_peak_of_a_process(big: Path) -> None:
    """From its beginning, with all that it imports."""
    found = alone(big, "reference")
    if found.dtype != "torch.bfloat16":
        pytest.skip("this CPU has no bf16: the load converts, and the limit is for loads that do not")
    assert max(found.loaded, found.ran) <= found.sizes + 300e6


def stack(folder: Path, into: Path) -> None:
    """The same checkpoint with all experts of a layer in one tensor, as transformers 5 can write it."""
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
def test_peak_of_quantising(big: Path, scheme: str, forks: Forks) -> None:
    """That of the integers: the plain matrices, half a gigabyte, are never there."""
    found = peaks(forks, big, "auto", scheme)
    assert found.sizes <= (big / "model.safetensors").stat().st_size * (0.51 if scheme == "int8" else 0.39)
    assert found.loaded <= found.imported + found.sizes + ALLOWANCE


@pytest.mark.parametrize(("big", "more"), [
    ("tied", ["--dtype", "float32"]), ("tied", ["--quantize", "int4"]),
    ("experts", []), ("experts", ["--quantize", "int4"]),
], indirect=["big"], scope="module")  # fmt: skip
def test_peak_of_merging(big: Path, more: list[str], forks: Forks, tmp_path: Path) -> None:
    """Half a gigabyte of weights, of which no tensor is ever whole; the adapter is, with all that PEFT saves of it."""
    values = json.loads((big / "config.json").read_text())
    targets = {"target_modules": ["q_proj", "down_proj", "embed_tokens"]}
    if values["model_type"] != "qwen2":
        targets = {"target_modules": ["o_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    llm = Base(skeleton(families.resolve(values)[0], torch.bfloat16), values, torch.device("cpu"))
    adapter = attach(llm, AdapterConfig(r=4, **targets))
    adapter.write(tmp_path / "adapter")
    made = ["--output", str(tmp_path / "made"), "--no-compare", *more]
    line = ["merge", "--weights", str(big), "--adapter", str(tmp_path / "adapter"), *made]
    imported, peak = map(int, ran(forks.start("tests.helpers.peaks", *line)))
    assert peak <= imported + sum(each.nbytes for each in adapter.parameters()) + ALLOWANCE


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
def test_peak_of_what_stays_quantised(config: dict, section: dict, forks: Forks, tmp_path: Path) -> None:
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
    found = peaks(forks, tmp_path, "auto")
    assert found.dtype == "torch.bfloat16" or stored < found.sizes  # without fast bf16 the rest is in fp32
    assert found.sizes <= (1.05 if found.dtype == "torch.bfloat16" else 1.6) * stored
    assert plain > 2 * stored
    assert found.loaded <= found.imported + found.sizes + ALLOWANCE


@pytest.mark.parametrize("form", [*packed_models.FORMS, *packed_models.BLOCKS])
def test_peak_of_each_form(form: str, forks: Forks, tmp_path: Path) -> None:
    """The bytes of the file and 150 MB, beside what an import takes: two to four times as many of plain numbers are
    never there, and neither is the file twice."""
    weights, stored = of_form(form, tmp_path)
    found = peaks(forks, weights, "auto")
    assert found.sizes <= 1.13 * stored  # the factors of NVFP4 have 16 bits here
    assert found.loaded <= found.imported + stored + 150e6


def of_form(form: str, folder: Path) -> tuple[Path, int]:
    """224 million weights in a form: what to load, and the bytes of the file."""
    config = {**DENSE, "vocab_size": 2000, "num_hidden_layers": 8, "tie_word_embeddings": False}
    weights = packed_models.write(folder, config, form)
    return weights, sum(path.stat().st_size for path in folder.glob("model.*"))


class Peaks(NamedTuple):
    """Of a process that loads a checkpoint: bytes held before, at most until it is loaded, and until it has generated;
    the bytes of the parameters; the dtype."""

    imported: int
    loaded: int
    ran: int
    sizes: int
    dtype: str


def peaks(forks: Forks, folder: Path, kernels: str, scheme: str = "") -> Peaks:
    line = ["load", str(folder), kernels, *([scheme] if scheme else [])]
    return read(ran(forks.start("tests.helpers.peaks", *line, TRITON_INTERPRET="0")))


def alone(folder: Path, kernels: str) -> Peaks:
    """Of a process that nobody was forked from."""
    command = [sys.executable, "-m", "tests.helpers.peaks", "load", str(folder), kernels]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return read(done.stdout.split())


def read(words: list[str]) -> Peaks:
    *sizes, dtype = words
    return Peaks(*map(int, sizes), dtype)


def ran(run: Run) -> list[str]:
    """The words that it writes last."""
    code, out, err = run.ended()
    assert code == 0, err
    return out.splitlines()[-1].split()


def main(forms: list[str]) -> None:
    """A line for each form: MB of the file, of the parameters, at the peak, and of these before the load."""
    print(f"{'':16}{'file':>8}{'loaded':>8}{'peak':>8}{'import':>8}")
    for form in forms or [*packed_models.FORMS, *packed_models.BLOCKS]:
        with tempfile.TemporaryDirectory() as folder:
            weights, stored = of_form(form, Path(folder))
            found = alone(weights, "auto")
        sizes = (stored, found.sizes, found.loaded, found.imported)
        print(f"{form:16}" + "".join(f"{each / 1e6:8.0f}" for each in sizes), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
