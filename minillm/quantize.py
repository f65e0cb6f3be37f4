"""A checkpoint with integers for matrices, written so that it loads as it is, or as the file that llama.cpp runs:

    python -m minillm.quantize --weights PATH --output FOLDER --quantize int8 | int4 [--group-size N] [--asymmetric]
    python -m minillm.quantize --weights PATH --output FILE.gguf --quantize q4_k_m | q8_0 | f16 | …

In a folder the tensors keep their published names, and a matrix gets companions beside it (`weights/ints.py`). Loading
it gives, bit for bit, what `--quantize` gives while it loads the original. Files are written in `report/saving.py`.
Neither way ever has a whole plain model in memory.
"""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from minillm import cli, config, families, hub
from minillm.guard.files import is_there, read_bytes
from minillm.guard.screen import note, printable
from minillm.guard.writing import complete, new_folder, terminable
from minillm.loading import asked_scheme, fits, integers, opened, stored_dtype
from minillm.model import held
from minillm.model.decoder import skeleton
from minillm.report.saving import write_gguf
from minillm.weights import ints
from minillm.weights.checkpoint import brief
from minillm.weights.gguf.mixtures import MIXTURES
from minillm.weights.gguf.reader import SUFFIX
from minillm.weights.ints import Int4, Int8
from minillm.weights.save import save_quantised


def quantize(
    weights: str | Path | None,
    output: Path,
    scheme: Int8 | Int4,
    progress: Callable[[int, int], None] = lambda done, total: None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Write a checkpoint folder as `scheme` has it to a folder that must not exist yet; complete or not at all.

    Returns the bytes of its weights before and after, and the bits per value of the matrices. Raises ValueError for a
    checkpoint that cannot be loaded or is quantised so already, and for an output that is there.
    """
    folder = hub.resolve(weights, revision=revision)
    values = config.read(folder)
    if integers(folder, values):
        raise ValueError(f"{folder}: its weights are integers already; quantise the checkpoint it was made from")
    output = _output(output)
    values, checkpoint = opened(folder, values)
    spec, rules, read = families.resolve(values)
    model = skeleton(spec, torch.float32)
    planned = checkpoint.plan(rules, model.destinations())
    for each in fits(planned, checkpoint, values):
        note(each)
    dtype = str(stored_dtype("auto", read.dtype, checkpoint.dtype)).removeprefix("torch.")
    key = "dtype" if "dtype" in values else "torch_dtype"
    made = {**values, key: dtype, "quantization_config": ints.written(scheme)}
    small = {name: read_bytes(_own(folder / name)) for name in hub.SMALL_FILES if is_there(folder / name)}
    _own(folder / "config.json")
    with new_folder(output) as partial:
        written = save_quantised(partial, checkpoint, planned, held.integers(model, scheme), progress)
        small["config.json"] = json.dumps(made, indent=2, ensure_ascii=False).encode()  # last: without it nothing loads
        for name, content in small.items():
            with complete(partial / name) as file:
                file.write(content)
    return {"output": str(output), "bytes_before": checkpoint.nbytes, **written}


def to_file(
    weights: str | Path | None,
    output: Path,
    mixture: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Write a checkpoint as a GGUF file that must not exist yet, of a mixture of kinds (`mixtures.MIXTURES`).

    Returns what `quantize` does, and how many tensors there are of each kind. Raises ValueError for a checkpoint that
    cannot be loaded or that llama.cpp would compute otherwise, and for an output that is there.
    """
    folder, output = hub.resolve(weights, revision=revision), _output(output)
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent}: no such folder; make it, or choose another --output")
    with terminable():
        return {"output": str(output), **write_gguf(output, folder, config.read(folder), mixture, progress)}


def _output(path: Path) -> Path:
    """Where the folder or file shall be. Raises ValueError where something is; what a killed run has
    left is only said."""
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
    if os.path.lexists(path) or not path.name:
        raise ValueError(f"{path}: is there already; remove it or choose another --output")
    if left := sorted(each.name for each in path.parent.glob(f"{glob.escape(path.name)}.*.partial")):
        note(f"{path.parent}: {brief(left)} was left by a run that was cut off; remove it")
    return path


def _own(path: Path) -> Path:
    """A file of a checkpoint, or in the hub's cache, which consists of links, of its repository.

    Raises ValueError for a link to elsewhere: with it a checkpoint could have any file of this machine copied into a
    folder that is to be given away. Tensors may lie anywhere, as nothing is copied that is no tensor of the model."""
    home, real = path.parent.resolve(), path.resolve()
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        home = home.parent.parent
    if not real.is_relative_to(home):
        raise ValueError(f"{path}: a link to {real}, out of the checkpoint; put the file itself in its place")
    return path


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    description = "Write a checkpoint with int8 or int4 matrices, which loads as it is, or as a GGUF file."
    parser = cli.parser("quantize", description)
    parser.add_argument("--weights", metavar="PATH", help=cli.WEIGHTS)
    cli.add_revision(parser)
    output = "a folder, or a file that ends in .gguf, that is not there yet"
    parser.add_argument("--output", metavar="PATH", type=Path, required=True, help=output)
    cli.add_quantize_arguments(parser, required=True, files=tuple(MIXTURES))
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
    arguments = parser.parse_args(argv)
    kind, is_file = arguments.quantize, arguments.output.suffix == SUFFIX
    if is_file != (kind in MIXTURES):
        remedy = f"is for a GGUF file: let --output end in {SUFFIX}" if kind in MIXTURES else "is for a folder"
        raise ValueError(f"--output {arguments.output}, but --quantize {kind} {remedy}, or take another kind")
    scheme = asked_scheme(None if is_file else kind, arguments.group_size, not arguments.asymmetric)
    given, bar = (arguments.weights, arguments.output), cli.progress_bar("quantising")
    revision = cli.revision(arguments)
    report = quantize(*given, scheme, bar, revision) if scheme else to_file(*given, kind, bar, revision)
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        before, after = (report[key] / 1e6 for key in ("bytes_before", "bytes"))
        each = f"{report['bits_per_value']:.2f} bits for each value{' of the matrices' if scheme else ''}"
        print(printable(f"{report['output']}: {after:,.1f} MB, before {before:,.1f} MB; {each}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
