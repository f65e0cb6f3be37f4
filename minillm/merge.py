"""A checkpoint with LoRA adapters in its weights, which any program runs that runs the checkpoint:

    python -m minillm.merge --weights PATH --adapter FOLDER [--adapter FOLDER …] --output FOLDER [--dtype float32]
    python -m minillm.merge --weights PATH --adapter FOLDER --output FOLDER --quantize int8 | int4
    python -m minillm.merge --weights PATH --adapter FOLDER --output FILE.gguf --quantize q4_k_m | q8_0 | …

    W + s B A for each matrix W that has an adapter, in fp32, rounded once: to the type of W, or to integers

Tensors are read, changed and written some rows at a time. What is written is loaded once more then, and its logits are
compared with those of the adapters beside the checkpoint.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import cli, config, families, hub
from minillm.adapters.adapter import Adapter
from minillm.adapters.build import Base
from minillm.adapters.merging import Moved, changes
from minillm.adapters.read import read
from minillm.guard import memory
from minillm.guard.screen import note, printable
from minillm.loading import asked_scheme, lay_out, load
from minillm.model import held
from minillm.model.decoder import skeleton
from minillm.ops.device import DTYPES
from minillm.report import writing
from minillm.report.original import TABLE, Original, original, untied
from minillm.weights.altered import Altered, altered
from minillm.weights.gguf.mixtures import MIXTURES
from minillm.weights.ints import Int4, Int8
from minillm.weights.rows import Rows
from minillm.weights.tensorfile import DTYPES as STORED

COMPARED = 32  # tokens
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What the merged weights are written as: integers in a folder, a mixture of kinds in a GGUF file, or plain numbers
    of a type, None for that of each tensor."""

    scheme: Int8 | Int4 | None = None
    mixture: str | None = None
    dtype: torch.dtype | None = None


def merge(
    weights: str | Path | None,
    folders: Sequence[Path],
    output: Path,
    as_what: Written = Written(),
    progress: Progress = lambda done, total: None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Write a checkpoint with the adapters of some folders in its weights to a folder or GGUF file that must not exist
    yet; complete or not at all.

    Returns what `writing.to_folder` and `to_file` do and, of plain numbers, how many weights there are that the
    adapters change, and how many of these rounding left as they were. Raises ValueError for a checkpoint that cannot be
    loaded, for folders that are no adapters of it, and for an output that is there.
    """
    folder, output = hub.resolve(weights, revision=revision), writing.free(output)
    base = original(folder, config.read(folder))
    model = Base(skeleton(base.plain.spec, base.dtype), base.values, torch.device("cpu"))
    adapters = [read(model, each, str(number)) for number, each in enumerate(folders)]
    moved = Moved()
    made = merged(base, adapters, as_what, moved)
    if as_what.mixture is not None:
        return writing.to_file(output, made, as_what.mixture, progress)
    report = writing.to_folder(output, made, as_what.scheme, progress)
    return report if as_what.scheme else {**report, "changed": moved.changed, "unmoved": moved.unmoved}


def merged(base: Original, adapters: Sequence[Adapter], as_what: Written, moved: Moved) -> Original:
    """The checkpoint with adapters in its tensors, none of which is read yet; `moved` counts as they are."""
    if quantised := sorted({info.format for info in base.checkpoint.info.values() if info.format}):
        note(f"{base.folder}: its matrices in {', '.join(quantised)} are dequantised first; an adapter trained on "
             "others than these, say plain ones, may lose by it")  # fmt: skip
    rows = Rows(base.checkpoint, base.planned)
    into = changes(adapters, rows.pieces)
    if base.plain.spec.tied and {TABLE, families.HEAD} & set(into):
        note("an adapter changes the embedding or the head, which are one matrix in this checkpoint: it gets two")
        base = untied(base)
    parameters = dict(skeleton(base.plain.spec, as_what.dtype or base.dtype).named_parameters())
    exact = dict(parameters) if as_what.mixture else held.integers(base.plain, as_what.scheme) if as_what.scheme else {}
    tensors = {}
    for name, to in base.planned.assignments.items():
        info, change = base.checkpoint.info[name], into.get(to.parameter)
        dtype = parameters[to.parameter].dtype
        if to.parameter in exact:
            dtype = torch.float32
        elif as_what.dtype is None and info.format is None:
            dtype = STORED[info.dtype]
        if change or (to.parameter not in exact and (info.format or STORED[info.dtype] != dtype)):
            stored = base.checkpoint.stored[name]
            counted = change is not None and to.parameter not in exact
            tensors[name] = Altered(stored, to, dtype, change, moved.saw if counted else None)
    for name, to in base.towers.items() if as_what.dtype else ():
        tensors[name] = Altered(base.checkpoint.stored[name], to, as_what.dtype or base.dtype, None, None)
    made = replace(base, checkpoint=altered(base.checkpoint, tensors))
    return made if as_what.dtype is None else replace(made, dtype=as_what.dtype)


@torch.no_grad()
def compared(
    weights: str | Path | None, folders: Sequence[Path], output: Path, revision: str | None = None
) -> dict[str, float] | None:
    """How far the logits of what was written are from those of the adapters beside the checkpoint, and how far these
    are from those without adapters, both in fp32, at most; None where there is no memory for that."""
    options: dict[str, Any] = {"dtype": "float32", "kernels": "reference"}
    laid = [lay_out(weights, revision=revision, **options), lay_out(output, **options)]
    needed, left = max(each.nbytes for each in laid), memory.available()
    if laid[0].device.type == "cpu" and left is not None and needed > left:
        note(f"logits are not compared: that takes {needed / 1e9:,.1f} GB and {left / 1e9:,.1f} GB are left")
        return None
    llm = load(weights, revision=revision, **options)
    tokens = torch.randint(llm.spec.vocab_size, (1, COMPARED), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(llm.device)
    alone = llm.model(tokens)
    adapters = [read(llm, each, str(number)) for number, each in enumerate(folders)]
    llm.model.choice.rows = tuple((each.name, None) for each in adapters)
    beside = llm.model(tokens)
    del llm, adapters
    gc.collect()
    found = load(output, **options).model(tokens)
    return {"difference": _apart(found, beside), "effect": _apart(beside, alone)}


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    description = "Write a checkpoint with LoRA adapters in its weights: plain, with int8 or int4 matrices, or as GGUF."
    parser = cli.parser("merge", description)
    parser.add_argument("--weights", metavar="PATH", help=cli.WEIGHTS)
    cli.add_revision(parser)
    adapter = "an adapter in PEFT's format; several are added up"
    parser.add_argument("--adapter", metavar="FOLDER", type=Path, action="append", required=True, help=adapter)
    parser.add_argument("--output", metavar="PATH", type=Path, required=True, help=writing.OUTPUT)
    parser.add_argument("--dtype", choices=("auto", *DTYPES), help="of plain numbers; auto: as the checkpoint has them")
    cli.add_quantize_arguments(parser, files=tuple(MIXTURES))
    parser.add_argument("--no-compare", action="store_true", help="do not load what was written to compare its logits")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
    arguments = parser.parse_args(argv)
    as_what, revision = _asked(arguments), cli.revision(arguments)
    given = arguments.weights, arguments.adapter, arguments.output
    report = merge(*given, as_what, cli.progress_bar("merging"), revision)
    if not arguments.no_compare:
        report["logits"] = compared(*given[:2], Path(report["output"]), revision)
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        for line in _lines(report):
            print(printable(line))
    return 0


def _asked(arguments: Any) -> Written:
    """What shall be written. Raises ValueError for arguments that do not go together."""
    kind, mixture = arguments.quantize, writing.mixture(arguments.output, arguments.quantize)
    if kind is not None and arguments.dtype is not None:
        raise ValueError(f"--dtype {arguments.dtype} is for plain numbers; leave it out, or --quantize {kind}")
    scheme = asked_scheme(None if mixture else kind, arguments.group_size, not arguments.asymmetric)
    return Written(scheme, mixture, DTYPES.get(arguments.dtype))


def _lines(report: Mapping[str, Any]) -> list[str]:
    lines = [f"{report['output']}: {report['bytes'] / 1e6:,.1f} MB, before {report['bytes_before'] / 1e6:,.1f} MB"]
    if "changed" in report:
        lines.append(str(Moved(report["changed"], report["unmoved"])))
    if report.get("logits"):
        found = report["logits"]
        lines.append(f"logits are up to {found['difference']:.2g} from those with the adapter beside the weights, and "
                     f"those up to {found['effect']:.2g} from the checkpoint's own")  # fmt: skip
    return lines


if __name__ == "__main__":
    sys.exit(main())
