"""Where two implementations of a model differ first, by how much, and why:

    python -m minillm.diff --weights PATH [--against transformers | PATH] [--prompt TEXT] [--json] [--plot FILE.png]

Both read the same tokens. Each module of ours is given the reference's input (its own error) and what the modules
before it made (the error so far); the first whose own error is beyond rounding is replayed op by op in fp64. With
another checkpoint, dtype or quantisation of the same model as the reference, the table shows what that costs layer by
layer. With --image both towers see the same picture, see `diff/tower.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import cli, config, families, hub
from minillm.diff import names as diff_names
from minillm.diff import report as diff_report
from minillm.diff import tower as diff_tower
from minillm.diff import trace as diff_trace
from minillm.diff.causes import causes
from minillm.diff.compare import compare, precision, step_of
from minillm.diff.names import Site
from minillm.diff.replay import replay
from minillm.diff.report import Finding
from minillm.diff.signs import signs
from minillm.diff.trace import Trace
from minillm.llm import LLM
from minillm.loading import integers, load
from minillm.model import held
from minillm.model.decoder import Decoder
from minillm.ops.device import DTYPES
from minillm.report import picture, reference
from minillm.weights.checkpoint import Checkpoint

PROMPT = "Once upon a time there was a little house at the edge of the wood, and in it lived an old man and his cat."
MAX_TOKENS = 1024  # attention weights of every layer are kept: tokens² for each head
# ulps. The largest of a module's own error over all variants of all families in fp32 was 19 (tests/diff/test_diff.py).
TOLERANCE = 64.0


def examine(
    llm: LLM, trace: Trace, sites: Sequence[Site], tolerance: float = TOLERANCE, other: Decoder | None = None
) -> Finding:
    """Compare a model with what a reference computed; with the `other` model where that is one of minillm."""
    ulp, rows = precision(llm.model, trace), compare(llm.model, trace, sites, tolerance)
    first = next((row for row in rows if row.diverges(tolerance)), None)
    if first is None:
        return Finding(ulp, rows, None, [], [], [])
    given = llm.model, first.site, trace, step_of(llm.model, trace)
    return Finding(ulp, rows, first, replay(*given), causes(*given, tolerance, other), signs(*given, tolerance))


def sites_of_transformers(llm: LLM, theirs: Any, renamed: dict[str, str] | None = None) -> list[Site]:
    """The pairs of modules, by the checkpoint's tensors and the family's table of them."""
    values = config.read(llm.folder)
    _, rules, _ = families.resolve(values)
    planned = Checkpoint(llm.folder, values.get("quantization_config")).plan(rules, llm.model.destinations())
    names = [name for name, _ in theirs.named_modules()]
    found = diff_names.sites(llm.model, planned, families.renamed(values) if renamed is None else renamed, names)
    there = {site.ours for site in found}
    if "layers.0.ffn.experts" in there:  # which may stand beside what is part of the mixture here
        there.add("layers.0.ffn")
    first = llm.spec.layers[0]
    wanted = {"embedding", "layers.0", "head"} | ({"layers.0.ffn"} if first.ffn else set())
    wanted |= {"layers.0.attention"} if len(first.mixers) == 1 else set()  # several have no module of their own
    if missing := wanted - there:
        raise ValueError(
            f"{llm.folder}: {type(theirs).__name__} has no modules of the checkpoint's names for "
            f"{', '.join(sorted(missing))}; such a model cannot be compared"
        )
    return found


def against_transformers(llm: LLM, tokens: Tensor) -> tuple[Trace, list[Site]]:
    """The same folder in transformers, in its plainest implementation and fp32. Raises ValueError where it cannot."""
    if integers(llm.folder, config.read(llm.folder)):
        raise ValueError(f"{llm.folder}: transformers does not read these integers; give --against the plain folder")
    plain: dict[str, Any] = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = reference.load(llm.folder, dtype=llm.model.dtype, **plain).to(llm.device)
    sites = sites_of_transformers(llm, model)
    return diff_trace.of_transformers(model, tokens, sites), sites


def against_minillm(llm: LLM, other: LLM, tokens: Tensor) -> tuple[Trace, list[Site]]:
    """Another checkpoint of the same model. Raises ValueError where it is none."""
    ours, theirs = held.plain_shapes(llm.model), held.plain_shapes(other.model)
    if odd := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        raise ValueError(
            f"--against {other.folder}: {odd[0]} is {_shape(theirs, odd[0])}, in {llm.folder} it is "
            f"{_shape(ours, odd[0])}; give another checkpoint of the same model"
        )
    return diff_trace.of_minillm(other.model, tokens), diff_names.same(llm.model)


def _shape(shapes: Mapping[str, Sequence[int]], name: str) -> str:
    return " x ".join(map(str, shapes[name])) if name in shapes else "not there"


def tokens_of(llm: LLM, arguments: argparse.Namespace) -> Tensor:
    """`[1, T]`. Raises ValueError for tokens that cannot be."""
    if arguments.prompt_ids is not None:
        ids = arguments.prompt_ids
    elif llm.tokenizer is not None:
        text = PROMPT if arguments.prompt is None else arguments.prompt
        llm.tokenizer.refuse_too_long(text, llm.spec.context)
        ids = llm.tokenizer.encode(text)
    elif arguments.prompt is not None:
        raise ValueError(f"{llm.folder}: no tokenizer, so --prompt cannot be read; give --prompt-ids")
    else:
        ids = list(range(1, min(33, llm.spec.vocab_size)))
    limit = min(llm.spec.context, MAX_TOKENS)
    if not 2 <= len(ids) <= limit:
        raise ValueError(f"the prompt has {len(ids)} tokens; it takes 2 to {limit}")
    if odd := [each for each in ids if not 0 <= each < llm.spec.vocab_size]:
        raise ValueError(f"--prompt-ids has {odd[0]}; this vocabulary goes from 0 to {llm.spec.vocab_size - 1}")
    return torch.tensor([ids], device=llm.device)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report that `--json` prints."""
    if arguments.plot:
        picture.check(arguments.plot)
    if arguments.image is not None and (arguments.against != "transformers" or arguments.plot or arguments.all):
        raise ValueError("--image compares the layers of a tower with transformers: leave out --against, --plot, --all")
    if not 0 < arguments.tolerance < math.inf:
        raise ValueError(f"--tolerance is {arguments.tolerance:g} ulps; it must be a number above 0")
    options = cli.model_options(arguments)
    if arguments.dtype == "auto":
        options["dtype"] = "float32"  # where a difference is no rounding
    llm = load(**options, progress=cli.progress_bar("loading"))
    if arguments.image is not None:
        return diff_tower.compared(llm, arguments)
    tokens, theirs = tokens_of(llm, arguments), None
    if arguments.against == "transformers":
        if arguments.against_dtype:
            raise ValueError("--against-dtype goes with another checkpoint; transformers takes the dtype of ours")
        trace, sites = against_transformers(llm, tokens)
    else:
        dtype = arguments.against_dtype or "float32"
        folder = hub.resolve(arguments.against)
        other = load(folder, dtype, llm.device, options["kernels"], cli.progress_bar("loading the reference"))
        trace, sites = against_minillm(llm, other, tokens)
        theirs = other.model
    found = examine(llm, trace, sites, arguments.tolerance, theirs)
    return diff_report.as_json(llm, arguments, tokens.shape[1], found, diff_names.same(llm.model))


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("diff", "Say where a model first differs from a reference, by how much, and why.")
    cli.add_model_arguments(parser)
    parser.add_argument(
        "--against", metavar="WHAT", default="transformers", help="transformers (default), or a folder or org/name"
    )
    parser.add_argument("--against-dtype", choices=tuple(DTYPES), help="of another checkpoint (default: float32)")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--prompt", metavar="TEXT", help="what both read (default: a sentence)")
    given.add_argument("--prompt-ids", type=cli.token_ids, metavar="N,N,…", help="the same as token ids")
    given.add_argument("--image", metavar="FILE | WxH", help="through the towers: a picture, or noise of a size")
    parser.add_argument("--tolerance", metavar="ULPS", type=float, default=TOLERANCE, help="of a module (64)")
    parser.add_argument("--all", action="store_true", help="a line for every module, not for every layer")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="the error by depth; needs '.[plot]'")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
    arguments = parser.parse_args(argv)
    report = run(arguments)
    if arguments.plot:
        diff_report.draw(arguments.plot, report)
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False, allow_nan=False))
    else:
        colour = cli.colourful()
        shown = (
            diff_report.lines(report, arguments.all, colour) if arguments.image is None else diff_tower.lines(report)
        )
        for line in shown:
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
