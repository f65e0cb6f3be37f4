"""What a checkpoint is, without reading its weights: `python -m minillm.explain --weights DIR [--json]`.

Works from config.json, and from the safetensors headers or the index where they exist.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minillm import cli, config, families, hub
from minillm.measure import active_values
from minillm.model import skeleton
from minillm.weights.checkpoint import Checkpoint, TensorInfo, find
from minillm.weights.load import misshapen
from minillm.weights.rules import plan


def explain(folder: Path) -> dict[str, Any]:
    """The resolved spec, all parameters and those active per token, and how the folder's tensors fit; the lists of
    tensors are None where it has neither weights nor an index. Raises ValueError for what is not supported."""
    values = config.read(folder)
    spec, rules, read = families.resolve(values)
    model = skeleton(spec, torch.bfloat16)
    report: dict[str, Any] = {
        "weights": str(folder),
        "model_type": values["model_type"],
        "quantization": config.quantization(values),
        "dtype": read.dtype,
        "parameter_count": sum(parameter.numel() for parameter in model.parameters()),
        "active_parameter_count": sum(active_values(model).values()),
        "unknown_config_keys": read.unread,
        "unclaimed_tensors": None,
        "unfilled_parameters": None,
        "dropped_tensors": None,
        "misshapen_tensors": None,
    }
    names, headers = _tensors(folder)
    if names is not None:
        planned = plan(names, rules, model.destinations())
        report["unclaimed_tensors"] = planned.unclaimed + planned.twice_filled
        report["unfilled_parameters"] = planned.unfilled
        report["dropped_tensors"] = planned.dropped
        report["misshapen_tensors"] = misshapen(planned, headers) if headers is not None else None
    report["spec"] = describe(spec)
    return report


def _tensors(folder: Path) -> tuple[list[str] | None, dict[str, TensorInfo] | None]:
    """The names of a folder's tensors, and what their headers say where the files are there."""
    found = find(folder)
    if found is None:
        return None, None
    files, located = found
    if located is not None and not all((folder / file).is_file() for file in files):
        return list(located), None
    headers = Checkpoint(folder).info
    return list(headers), headers


def describe(spec: Any) -> Any:
    """A spec as plain data; each dataclass says its kind."""
    if dataclasses.is_dataclass(spec):
        fields = {field.name: describe(getattr(spec, field.name)) for field in dataclasses.fields(spec)}
        return {"kind": type(spec).__name__, **fields}
    return [describe(each) for each in spec] if isinstance(spec, tuple) else spec


def _print(report: dict[str, Any]) -> None:
    spec = report["spec"]
    stored = f"stored as {report['dtype']}" + (
        f", quantised: {report['quantization']}" if report["quantization"] else ""
    )
    total, active = report["parameter_count"], report["active_parameter_count"]
    count = f"{total:,} parameters" + (f", {active:,} active per token" if active < total else "")
    print(f"{report['weights']}: {report['model_type']}, {count}, {stored}")
    head = "head tied to the embedding" if spec["tied"] else "own head"
    print(f"vocabulary {spec['vocab_size']}, hidden size {spec['hidden_size']}, context {spec['context']}, {head}")
    first = 0
    for layer, run in itertools.groupby(spec["layers"]):
        last = first + len(list(run)) - 1
        print(f"layers {first} to {last}:" if last > first else f"layer {first}:")
        for part in ("attention_norm", "attention", "ffn_norm", "ffn"):
            print(f"  {part:15}{_line(layer[part])}")
        first = last + 1
    print(f"final norm       {_line(spec['final_norm'])}")
    for key in (
        "unknown_config_keys",
        "unclaimed_tensors",
        "unfilled_parameters",
        "misshapen_tensors",
        "dropped_tensors",
    ):
        names = report[key]
        label = key.replace("_", " ")
        if names is None:
            print(f"{label}: not known, this folder has no weights to look at")
        else:
            print(
                f"{label}: {len(names)}"
                + (f" ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})" if names else "")
            )


def _line(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    fields = ", ".join(f"{key}={_line(each)}" for key, each in value.items() if key != "kind" and each is not None)
    return f"{value['kind']}({fields})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("explain", "Say what a checkpoint is, without reading its weights.")
    parser.add_argument("--weights", metavar="PATH", help="checkpoint folder or org/name (default: the built-in demo)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args(argv)

    def body() -> int:
        report = explain(hub.resolve(arguments.weights, tensors=False))
        if arguments.json:
            print(json.dumps(report, ensure_ascii=False))
        else:
            _print(report)
        return 0

    return cli.run(body)


if __name__ == "__main__":
    sys.exit(main())
