"""The same weights for every engine: random ones in a published shape, and any as the file that llama.cpp reads."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minillm import config, families, hub
from minillm.families.shared import gguf_names
from minillm.families.shared.shapes import SHAPES
from minillm.model.costs import active_values
from minillm.model.decoder import Decoder, skeleton
from minillm.model.rope import frequencies
from minillm.spec import Decoder as DecoderSpec
from minillm.spec import Rope
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.gguf import writer as gguf
from minillm.weights.layout import Layout
from minillm.weights.rules import Destination, plan, rows
from minillm.weights.save import save

# What llama.cpp calls what we call a dtype, and its own for our quantisations.
ENCODINGS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}


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


def write_gguf(path: Path, model: Decoder, kind: str) -> None:
    """A model with plain parameters as a GGUF file of `kind`, a key of `ENCODINGS`: matrices in that encoding, the
    embedding and the head among them; vectors and routers in fp32.

    Raises ValueError for a model that llama.cpp does not know.
    """
    metadata = gguf_names.metadata(model.spec)
    joined: dict[str, list[Destination]] = {}
    for key, to in model.destinations().items():
        layer = re.search(r"(?<=^layers\.)\d+", key)
        generic = re.sub(r"\[\d+", "[{e}", re.sub(r"^layers\.\d+", "layers.{i}", key))
        joined.setdefault(gguf_names.TENSORS[generic].format(i=layer and layer.group()), []).append(to)
    entries = [_entry(model, name, parts, ENCODINGS[kind]) for name, parts in joined.items()]
    if factors := rope_factors(model.spec):
        entries.append(gguf.Entry(gguf_names.ROPE_FACTORS, (len(factors),), "F32", [torch.tensor(factors)]))
    gguf.write(path, metadata, entries)


def _entry(model: Decoder, name: str, parts: list[Destination], encoding: str) -> gguf.Entry:
    parameter, arrangement = model.get_parameter(parts[0].parameter), gguf_names.layout(model.spec, name)
    shape = parts[0].shape if parameter.dim() < 3 else (len(parts), *parts[0].shape)
    kind = _encoding(parts[0].parameter, parameter, encoding)
    pieces = (rows(parameter.detach(), to) for to in parts)
    turned = Layout.parse(arrangement).restore if arrangement else None
    return gguf.Entry(name, shape, kind, map(turned, pieces) if turned else pieces)


def _encoding(name: str, parameter: Tensor, encoding: str) -> str:
    plain = parameter.dim() == 1 or name.endswith("router.weight")
    return "F32" if plain else gguf.fitting(encoding, parameter.shape[-1])


def gguf_bytes_per_step(model: Decoder, kind: str) -> int:
    """`costs.bytes_per_step` of the file that `write_gguf` would write."""
    total = 0
    for name, count in active_values(model).items():
        parameter = model.get_parameter(name)
        encoding = gguf.ENCODINGS[_encoding(name, parameter, ENCODINGS[kind])]
        if name != "embedding.weight" or model.spec.tied:
            total += count * encoding.nbytes // encoding.block
    return total


def stored_bytes_per_step(path: Path, model: Decoder) -> int:
    """`costs.bytes_per_step` of a GGUF file: its blocks as they are stored."""
    values = config.read(path)
    _, rules, _ = families.resolve(values)
    stored = Checkpoint(path, values.get("quantization_config"))
    active = {name: count / model.get_parameter(name).numel() for name, count in active_values(model).items()}
    if not model.spec.tied:
        active["embedding.weight"] = 0.0
    filled = plan(stored.info, rules, model.destinations()).assignments
    return round(sum(stored.stored[name].nbytes * active[to.parameter] for name, to in filled.items()))


def rope_factors(decoder: DecoderSpec) -> list[float] | None:
    """The divisor of each frequency, where a scaling changes them."""
    rope = decoder.layers[0].attention.rope
    if rope.scaling is None:
        return None
    return (frequencies(Rope(rope.dim, rope.theta), 0) / frequencies(rope, 0)).tolist()
