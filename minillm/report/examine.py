"""What is known of a checkpoint without reading its weights: from config.json, and from the safetensors headers or the
index where they exist."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minillm import config, families
from minillm import spec as vocabulary
from minillm.guard.files import is_folder
from minillm.guard.jsonfile import read_json
from minillm.model.costs import active_values, cached_values, state_bytes
from minillm.model.outline import Outline, outline
from minillm.weights import formats
from minillm.weights.checkpoint import Checkpoint, find
from minillm.weights.load import MISSHAPEN, faults, misshapen
from minillm.weights.rules import Plan, Rules, plan


class Examined(NamedTuple):
    """What `explain` says, and what it was made from."""

    report: dict[str, Any]
    spec: vocabulary.Decoder
    planned: Plan | None  # None where there are neither weights nor an index
    values: dict[str, Any]  # of config.json
    rules: Rules
    names: list[str] | None  # of the folder's tensors, as they are stored
    checkpoint: Checkpoint | None  # the files, where they are there


def explain(path: Path) -> dict[str, Any]:
    """The resolved spec of a folder or a config.json, all parameters and those active per token, what a token takes in
    the cache, and how the folder's tensors fit; the lists of tensors are None where there are neither weights nor an
    index. Raises ValueError for what is not supported."""
    return examine(path).report


def examine(path: Path) -> Examined:
    """`explain` with the spec and the plan."""
    values = config.read(path) if is_folder(path) or not path.exists() else config.named(read_json(path))
    spec, rules, read = families.resolve(values)
    (names, checkpoint), planned = _tensors(path, values), None
    sketch = outline(spec, torch.bfloat16, whole=names is not None)
    report: dict[str, Any] = {
        "weights": str(path),
        "model_type": values["model_type"],
        "quantization": config.quantization(values),
        "dtype": read.dtype,
        **counts(sketch),
        "unknown_config_keys": read.unread,
        "unclaimed_tensors": None,
        "unfilled_parameters": None,
        "dropped_tensors": None,
        "head_to_compare": None,  # a stored one, for which the load looks whether it is the embedding
        "misshapen_tensors": None,
        "other_faults": None,
    }
    if names is not None:
        filling = sketch.model.destinations()
        planned = checkpoint.plan(rules, filling) if checkpoint else plan(formats.plain(names), rules, filling)
        report["unclaimed_tensors"] = planned.unclaimed + planned.twice_filled
        report["unfilled_parameters"] = planned.unfilled
        report["dropped_tensors"] = planned.dropped
        report["head_to_compare"] = next(iter(families.spare_heads(planned.dropped, rules)), None)
        if checkpoint is not None:
            report["misshapen_tensors"] = misshapen(planned, checkpoint.info)
            found = faults(planned, checkpoint.info)
            report["other_faults"] = [each for key, names in found.items() if key != MISSHAPEN for each in names]
    report["spec"] = describe(spec)
    return Examined(report, spec, planned, values, rules, names, checkpoint)


def counts(sketch: Outline) -> dict[str, int]:
    """Parameters, all and those that a token goes through, and what a token and a sequence take in the cache."""
    return {
        "parameter_count": sketch.total({name: each.numel() for name, each in sketch.model.named_parameters()}),
        "active_parameter_count": sketch.total(active_values(sketch.model)),
        "cached_values_per_token": cached_values(sketch.spec),
        "state_bytes": state_bytes(sketch.spec, width=2),
    }


def _tensors(folder: Path, values: dict[str, Any]) -> tuple[list[str] | None, Checkpoint | None]:
    """The names of a folder's tensors as they are stored, and the files where they are there."""
    found = find(folder)
    if found is None:
        return None, None
    files, located = found
    if located is not None and not all((folder / file).is_file() for file in files):
        return list(located), None
    checkpoint = Checkpoint(folder, values.get("quantization_config"))
    return list(checkpoint.files_hold), checkpoint


def describe(spec: Any) -> Any:
    """A spec as plain data; each dataclass says its kind."""
    if dataclasses.is_dataclass(spec):
        fields = {field.name: describe(getattr(spec, field.name)) for field in dataclasses.fields(spec)}
        return {"kind": type(spec).__name__, **fields}
    return [describe(each) for each in spec] if isinstance(spec, tuple) else spec
