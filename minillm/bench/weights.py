"""The same weights for every engine: random ones in a published shape, and any as the file that llama.cpp reads."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from minillm import config, families, hub
from minillm.families.shared.shapes import SHAPES
from minillm.model.costs import active_values
from minillm.model.decoder import Decoder, skeleton
from minillm.report import saving
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.gguf import writer
from minillm.weights.save import save

# What llama.cpp calls what we call a dtype, and its own for our quantisations.
MIXTURES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0"}


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for weights, which goes when the block is left, and when the process is asked to end too: gigabytes."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with tempfile.TemporaryDirectory(prefix="minillm-bench-") as name:
            yield Path(name)
    finally:
        signal.signal(signal.SIGTERM, before)


def checkpoint(weights: str | None, shape: str | None, scratch: Path) -> Path:
    """The folder that `--weights` names, or `scratch` with random weights of the shape that `--random` does."""
    if shape is None:
        return hub.resolve(weights)
    print(f"writing random weights of {shape}", file=sys.stderr)
    write_random(scratch, shape)
    return scratch


def write_random(folder: Path, name: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """A checkpoint of random weights in the published shape `name`, in hub layout, without a tokenizer."""
    spec, rules, _ = families.resolve(SHAPES[name])
    model = skeleton(spec, dtype)
    torch.manual_seed(0)
    parameters = {}
    for key, parameter in model.named_parameters():
        values = torch.empty(parameter.shape, dtype=parameter.dtype)
        parameters[key] = values.fill_(1) if parameter.dim() == 1 else values.normal_(std=0.02)
    save(folder / "model.safetensors", parameters, rules, model.destinations())
    values_json = {**SHAPES[name], "torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(values_json), encoding="utf-8")


def write_gguf(path: Path, folder: Path, kind: str) -> None:
    """The checkpoint in a folder as a GGUF file of `kind`, a key of `MIXTURES`: all matrices in one kind of blocks, the
    embedding and the head among them; vectors and routers in fp32.

    Raises ValueError for a model that llama.cpp does not know.
    """
    try:
        saving.write_gguf(path, folder, config.read(folder), MIXTURES[kind], bare=True)
    except ValueError as error:
        raise ValueError(f"{error}; or leave llama.cpp out of --against") from None


def gguf_bytes_per_step(model: Decoder, values: Mapping[str, Any], kind: str) -> int:
    """`costs.bytes_per_step` of the file that `write_gguf` would write for a model with the config `values`."""
    active, total = active_values(model), 0.0
    for tensor, blocks in saving.described(model, values, MIXTURES[kind], pure=True).tensors:
        name = tensor.parts[0].parameter
        if name != "embedding.weight" or model.spec.tied:
            share = active[name] / model.get_parameter(name).numel()
            total += share * writer.nbytes(blocks, tensor.shape)
    return round(total)


def stored_bytes_per_step(path: Path, model: Decoder) -> int:
    """`costs.bytes_per_step` of a GGUF file: its blocks as they are stored."""
    values = config.read(path)
    _, rules, _ = families.resolve(values)
    stored = Checkpoint(path, values.get("quantization_config"))
    active = {name: count / model.get_parameter(name).numel() for name, count in active_values(model).items()}
    if not model.spec.tied:
        active["embedding.weight"] = 0.0
    filled = stored.plan(rules, model.destinations()).assignments
    return round(sum(stored.stored[name].nbytes * active[to.parameter] for name, to in filled.items()))
