"""A checkpoint with integers for matrices, written so that it loads as it is, or as the file that llama.cpp runs:

    python -m minillm.quantize --weights PATH --output FOLDER --quantize int8 | int4 [--group-size N] [--asymmetric]
    python -m minillm.quantize --weights PATH --output FILE.gguf --quantize q4_k_m | q8_0 | f16 | …

In a folder the tensors keep their published names, and a matrix gets companions beside it (`weights/ints.py`). Loading
it gives, bit for bit, what `--quantize` gives while it loads the original. Both are written in `report/writing.py`.
Neither way ever has a whole plain model in memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minillm import cli, config, hub
from minillm.guard.screen import printable
from minillm.loading import asked_scheme, integers
from minillm.report import writing
from minillm.report.original import original
from minillm.weights.gguf.mixtures import MIXTURES
from minillm.weights.ints import Int4, Int8


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
    output = writing.free(output)
    return writing.to_folder(output, original(folder, values), scheme, progress)


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
    folder, output = hub.resolve(weights, revision=revision), writing.free(output)
    return writing.to_file(output, original(folder, config.read(folder)), mixture, progress)


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    description = "Write a checkpoint with int8 or int4 matrices, which loads as it is, or as a GGUF file."
    parser = cli.parser("quantize", description)
    parser.add_argument("--weights", metavar="PATH", help=cli.WEIGHTS)
    cli.add_revision(parser)
    parser.add_argument("--output", metavar="PATH", type=Path, required=True, help=writing.OUTPUT)
    cli.add_quantize_arguments(parser, required=True, files=tuple(MIXTURES))
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
    arguments = parser.parse_args(argv)
    kind, mixture = arguments.quantize, writing.mixture(arguments.output, arguments.quantize)
    scheme = asked_scheme(None if mixture else kind, arguments.group_size, not arguments.asymmetric)
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
