"""Where a mixture of experts sends its tokens:

    python -m minillm.routes --weights PATH --text FILE ... [--layer N] [--plot FILE.png] [--html FILE.html] [--json]
    python -m minillm.routes ... --against-text FILE ... | --against PATH, --against-dtype D, --against-quantize S

For each layer: how evenly its experts are used, which go together, how nearly others would have been chosen, and which
tokens an expert sees most. Against another text, how the load differs; against another run over the same text, which
tokens go elsewhere. docs/routes.md says what each number is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minillm import cli, hub
from minillm.engine.windows import sizes
from minillm.guard import files
from minillm.llm import LLM
from minillm.loading import load
from minillm.report import page, picture
from minillm.routes import page as routes_page
from minillm.routes import plot, text
from minillm.routes.drift import drift, flips
from minillm.routes.measure import summary, together
from minillm.routes.record import Recording, encoded, record, routers
from minillm.spec import Router
from minillm.text import pieces

TIE = 0.01


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    return _run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("routes", "Show where a mixture of experts sends the tokens of a text.")
    cli.add_model_arguments(parser)
    several: dict[str, Any] = {"metavar": "FILE", "nargs": "+", "action": "extend"}
    parser.add_argument("--text", **several, required=True, help="UTF-8 files, each read by itself")
    parser.add_argument("--context", metavar="N", type=int, help="tokens of a window (default: 2048 at most)")
    parser.add_argument("--stride", metavar="N", type=int, help="from one window to the next (default: half of one)")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="of each text only the first N tokens")
    parser.add_argument("--tie", metavar="X", type=float, default=TIE, help=f"a margin below is a near tie ({TIE})")
    parser.add_argument("--layer", metavar="N", type=int, help="this layer in detail, its pairs in the picture too")
    parser.add_argument("--against-text", **several, help="compare with other texts")
    parser.add_argument("--against", metavar="PATH", help="compare with another checkpoint over the same text")
    parser.add_argument("--against-dtype", choices=("float32", "bfloat16", "float16"), help="… or this one in a dtype")
    parser.add_argument("--against-quantize", choices=("int8", "int4"), help="… or quantised")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw layers by experts; needs '.[plot]'")
    parser.add_argument("--html", metavar="FILE.html", type=Path, help="one page to look around in")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    other_run = _other_run(arguments)
    if arguments.plot:
        picture.check(arguments.plot)
    if arguments.html:
        page.check(arguments.html)
    if not 0 <= arguments.tie < float("inf"):
        raise ValueError(f"--tie is {arguments.tie}, it must be a number from 0 on")
    texts = [files.read_text(files.text_file("--text", each)) for each in arguments.text]
    others = [files.read_text(files.text_file("--against-text", each)) for each in arguments.against_text or ()]
    base = cli.model_options(arguments)
    # The other run goes first, so that what is wrong with it is said at once, and leaves before the second is loaded.
    after = _recorded(load(**other_run, progress=cli.progress_bar("loading")), texts, arguments) if other_run else None
    llm = load(**base, progress=cli.progress_bar("loading"))
    before = _recorded(llm, texts, arguments, after)
    if others:
        after = _recorded(llm, others, arguments)
    report = measured(llm, before, arguments)
    if after:
        report["drift"] = compared(before, after, arguments)
    counts = _pair_counts(before, arguments.layer) if arguments.plot or arguments.html else {}
    if arguments.plot:
        plot.draw(arguments.plot, report, arguments.layer, counts.get(arguments.layer))
    if arguments.html:
        routes_page.write(arguments.html, report, arguments.layer, counts)
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False, allow_nan=False))
    else:
        text.show(report, arguments.layer)
    return 0


def _other_run(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What `load` takes for the run to compare with. Raises ValueError where that makes no sense."""
    names = [name for name in ("against", "against_dtype", "against_quantize") if getattr(arguments, name)]
    if not names:
        return None
    if arguments.against_text:
        raise ValueError("--against-text compares two texts and the other --against… two runs; give one of them")
    base = cli.model_options(arguments)
    other = dict(base)
    if arguments.against is not None:
        other["path"] = arguments.against
    if arguments.against_dtype:
        other["dtype"] = arguments.against_dtype
    if arguments.against_quantize:
        other |= {"quantize": arguments.against_quantize, "group_size": None, "symmetric": True}
    if other == base:
        raise ValueError(f"--{names[0].replace('_', '-')} asks for the same run twice; change the one or the other")
    return other


def _recorded(llm: LLM, texts: list[str], arguments: argparse.Namespace, other: Recording | None = None) -> Recording:
    """One run over the texts. Raises ValueError before it where it could not end well, or not be compared."""
    found = routers(llm.spec, llm.folder.name)
    if arguments.layer is not None and arguments.layer not in found:
        raise ValueError(f"--layer is {arguments.layer}, the layers with experts are {', '.join(map(str, found))}")
    context, _ = sizes(llm.spec, arguments.context, arguments.stride)
    ids = encoded(llm, texts, arguments.max_tokens)
    if other:
        _comparable(found, ids, context, other, f"--against {arguments.against}")
    return record(llm, ids, arguments.context, arguments.stride, cli.progress_bar("routing", unit=" tokens"))


def _comparable(found: Mapping[int, Router], ids: list[list[int]], context: int, other: Recording, named: str) -> None:
    """Raises ValueError for runs whose choices cannot be held together."""
    experts = [{layer: (r.num_experts, r.top_k) for layer, r in each.items()} for each in (found, other.routers)]
    if experts[0] != experts[1]:
        raise ValueError(f"{named}: its layers have other experts than those of --weights")
    if ids != other.ids:
        raise ValueError(f"{named}: its tokenizer makes other tokens of the text")
    if context != other.context:
        raise ValueError(f"windows of {context} and of {other.context} tokens; give --context, the same for both")


def measured(llm: LLM, before: Recording, arguments: argparse.Namespace) -> dict[str, Any]:
    """The report without a comparison, its keys as in docs/routes.md."""
    ids = torch.tensor(list(itertools.chain(*before.ids)))

    def text_of(token: int) -> str:
        return pieces.texts(llm.tokenizer, [token])[token]

    return {
        "weights": hub.name_of(llm.folder),
        "text": arguments.text,
        "tokens": len(ids),
        "context": before.context,
        "stride": before.stride,
        "dtype": before.dtype,
        "tie": arguments.tie,
        "layers": [
            summary(layer, found, ids, before.routers[layer], arguments.tie, text_of)
            for layer, found in before.layers.items()
        ],
        "drift": None,
    }


def compared(before: Recording, after: Recording, arguments: argparse.Namespace) -> dict[str, Any]:
    """The drift from one recording to another."""
    runs = not arguments.against_text
    layers = []
    for layer, found in before.layers.items():
        each = drift(layer, found, after.layers[layer], before.routers[layer])
        layers.append(each | (flips(found, after.layers[layer], arguments.tie) if runs else {}))
    given = (arguments.against, arguments.against_dtype, arguments.against_quantize)
    return {
        "kind": "run" if runs else "text",
        "against": " ".join(filter(None, given)) if runs else ", ".join(arguments.against_text),
        "tokens": sum(map(len, after.ids)),
        "dtype": after.dtype,
        "layers": layers,
    }


def _pair_counts(before: Recording, layer: int | None) -> dict[int, torch.Tensor]:
    """Which experts went together: of all layers where a page can hold that, otherwise of the one asked for."""
    cells = sum(router.num_experts**2 for router in before.routers.values())
    wanted = before.layers if cells <= routes_page.MAX_CELLS else [layer] if layer is not None else []
    return {each: together(before.layers[each].experts, before.routers[each].num_experts) for each in wanted}


if __name__ == "__main__":
    sys.exit(main())
