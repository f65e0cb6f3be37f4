"""Looking into one forward pass:

    python -m minillm.lens --weights PATH --prompt TEXT [--show lens] [--json | --plot FILE.png | --html FILE.html]
    python -m minillm.lens --weights PATH --prompt TEXT --image FILE [--new-tokens N] [--token N] [--plot FILE.png | …]

For every position the next token's distribution, the logit lens behind every layer, what each head looks at, and the
norms of the residual stream and of what is added to it; of a picture which parts of it a token looks at. `docs/lens.md`
says how to read it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import cli, hub, spec
from minillm.engine.inserted import Inserted
from minillm.engine.sampling import Sampling
from minillm.guard import files
from minillm.lens import forward, over, plot, sampling
from minillm.lens import page as lens_page
from minillm.lens import seen as lens_seen
from minillm.lens import text as lens_text
from minillm.lens.forward import Pass
from minillm.lens.seen import Shown
from minillm.llm import LLM
from minillm.loading import load
from minillm.report import page, picture
from minillm.text import pieces

MAX_TOP_K = 100
MAX_WRITTEN = 2**22  # attention weights in a JSON object or a page
WEIGHT_DIGITS = 4  # decimals of a written attention weight


def plain(values: Any) -> Any:
    """Tensors and floats as lists and numbers of 6 significant digits, in whatever holds them."""
    if isinstance(values, Tensor):
        return plain(values.tolist())
    if isinstance(values, dict):
        return {key: plain(each) for key, each in values.items()}
    if isinstance(values, list):
        return [plain(each) for each in values]
    return float(f"{values:.6g}") + 0.0 if isinstance(values, float) else values  # + 0.0: no -0.0


def report(
    llm: LLM, ids: Sequence[int], top_k: int = 5, chosen: Sampling | None = None, inserted: Inserted | None = None
) -> tuple[dict[str, Any], Pass]:
    """What the views show, as plain data (`docs/lens.md` has the keys), and the pass it was made from. Raises
    ValueError for ids that cannot be looked at."""
    forward.check(llm.spec, ids)
    seen = forward.look(llm.model, ids, inserted)
    if not bool(seen.residual.isfinite().all()):
        raise ValueError(f"the residual stream leaves the range of {llm.model.dtype}; try --dtype float32")
    found = plain(forward.predictions(llm.model, seen, top_k))
    with torch.inference_mode():
        last = llm.model.logits(seen.residual[-1:, -1:])[0, 0]
        sampled = None if chosen is None else sampling.cuts(last, chosen, max(top_k, 10))
    heads = plain(forward.heads(seen, llm.spec))
    shown = {*ids, *(i for key in ("distribution", "lens") for row in found[key]["ids"] for i in row)}
    texts = pieces.texts(llm.tokenizer, sorted(shown | set(sampled["ids"] if sampled else ())))
    made = {
        "weights": hub.name_of(llm.folder),
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "tokens": list(ids),
        "texts": {str(i): text for i, text in sorted(texts.items())},
        **found,
        "heads": {key: [layer[key] for layer in heads] for key in heads[0]},
        "norms": plain(forward.norms(seen)),
    }
    return made | ({"sampling": plain(sampled)} if sampled else {}), seen


def check_maps(seen: Pass) -> None:
    """Raises ValueError where the attention maps are too many for a file."""
    count = sum(weights.numel() for weights in seen.attention)
    if count > MAX_WRITTEN:
        raise ValueError(
            f"the attention maps hold {count:,} weights and a file takes {MAX_WRITTEN:,}; give a shorter prompt"
        )


def as_lists(seen: Pass) -> list[Any]:
    """The attention maps `[layer][head][query][key]`, rounded."""
    return [
        [[[round(w, WEIGHT_DIGITS) for w in row] for row in head] for head in weights.tolist()]
        for weights in seen.attention
    ]


def _asked(llm: LLM, arguments: argparse.Namespace) -> tuple[list[int], Inserted | None, list[Shown]]:
    """The prompt's tokens, what stands among them, and the pictures."""
    if arguments.prompt_ids is not None:
        return list(arguments.prompt_ids), None, []
    if llm.tokenizer is None:
        raise ValueError(f"{llm.folder}: no tokenizer.json or tokenizer.model; give the prompt as --prompt-ids")
    text = arguments.prompt if arguments.text is None else files.read_text(Path(arguments.text))
    if arguments.image is not None:
        return lens_seen.prompt(llm, text, arguments)
    llm.tokenizer.refuse_too_long(text, llm.spec.context)
    return llm.tokenizer.encode(text), None, []


def _token(arguments: argparse.Namespace, count: int) -> int:
    """The position that looks at a picture. Raises ValueError for one that is not there."""
    token = -1 if arguments.token is None else arguments.token
    if not -count <= token < count:
        raise ValueError(f"--token is {token}, the positions go from 0 to {count - 1}, or from -1 backwards")
    return token % count


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("lens", "Look into one forward pass: what is predicted, layer by layer, and from where.")
    cli.add_model_arguments(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to look at")
    prompt.add_argument("--prompt-ids", metavar="1,2,3", type=cli.token_ids, help="raw ids, nothing is added to them")
    prompt.add_argument("--text", metavar="FILE", help="a UTF-8 file with the text")
    parser.add_argument("--top-k", metavar="N", type=int, default=5, help="tokens of each distribution (default: 5)")
    one_part = "one part only (default: all; --plot: lens; --image: picture)"
    parser.add_argument("--show", choices=(*lens_text.SECTIONS, "picture"), help=one_part)
    parser.add_argument("--layer", metavar="N", type=int, help="an attention map: its layer, from 0")
    parser.add_argument("--head", metavar="N", type=int, help="an attention map: its head, from 0")
    parser.add_argument("--sampling", metavar="NAME=X,…", help="what temperature, top_k, top_p and min_p would keep")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
    parser.add_argument("--attention", action="store_true", help="the attention maps too, with --json")
    parser.add_argument("--image", metavar="FILE", action="append", help="a picture before the prompt (repeatable)")
    parser.add_argument("--max-pixels", metavar="N", type=int, help="the size that a picture is seen in at most")
    parser.add_argument("--new-tokens", metavar="N", type=int, help="with --image: look at a greedy answer too")
    parser.add_argument("--token", metavar="N", type=int, help="with --image: the position that looks (default: -1)")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw one part as a PNG instead of text")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write all parts as one page to click through")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for arguments that do not go together, before anything is loaded."""
    if not 1 <= arguments.top_k <= MAX_TOP_K:
        raise ValueError(f"--top-k is {arguments.top_k}, it must be from 1 to {MAX_TOP_K}")
    if arguments.attention and not arguments.json:
        raise ValueError("--attention adds the maps to --json; give that too, or --layer and --head for one of them")
    one_part = [name for name in ("show", "layer", "head") if getattr(arguments, name) is not None]
    if one_part and (arguments.json or arguments.html) and not arguments.plot:
        raise ValueError(f"--{one_part[0]} goes with text or --plot; --json and --html hold all parts")
    if arguments.layer is None and arguments.head is not None:
        raise ValueError("--head needs --layer")
    if arguments.layer is not None and arguments.show not in (None, "attention", "picture"):
        raise ValueError(f"--layer is of an attention map; it has no effect with --show {arguments.show}")
    if arguments.layer is not None and arguments.head is None and not arguments.plot and not arguments.image:
        raise ValueError("--layer needs --head: in text one map fits; --plot draws all heads of a layer")
    if arguments.show == "sampling" and arguments.sampling is None:
        raise ValueError("--show sampling needs --sampling, such as --sampling temperature=0.8,top_p=0.9")
    _check_image(arguments)
    if arguments.text is not None:
        files.text_file("--text", arguments.text)
    if arguments.plot:
        picture.check(arguments.plot)
    if arguments.html:
        page.check(arguments.html)


def _check_image(arguments: argparse.Namespace) -> None:
    """Raises ValueError for arguments about pictures where there are none."""
    idle = [name for name in ("max_pixels", "new_tokens", "token") if getattr(arguments, name) is not None]
    if arguments.image is None and (idle or arguments.show == "picture"):
        raise ValueError(f"--{idle[0].replace('_', '-') if idle else 'show picture'} goes with --image")
    if arguments.image is not None and arguments.prompt_ids is not None:
        raise ValueError("--image goes with --prompt or --text, in front of which it stands")


def _check_head(llm: LLM, layer: int | None, head: int | None) -> None:
    """Raises ValueError for a layer or head that the model has not."""
    if layer is None:
        return
    if not 0 <= layer < len(llm.spec.layers):
        raise ValueError(f"--layer is {layer}, there are {len(llm.spec.layers)}, counted from 0")
    found = [next((m for m in each.mixers if isinstance(m, spec.Attention)), None) for each in llm.spec.layers]
    if (mixer := found[layer]) is None:
        attends = ", ".join(str(i) for i, each in enumerate(found) if each is not None)
        raise ValueError(
            f"--layer is {layer}, which has no attention and looks at no positions; {attends or 'none'} do"
        )
    count = mixer.num_heads
    if head is not None and not 0 <= head < count:
        raise ValueError(f"--head is {head}, there are {count}, counted from 0")


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    _check(arguments)
    chosen = None if arguments.sampling is None else sampling.settings(arguments.sampling)
    llm = load(**cli.model_options(arguments), progress=cli.progress_bar("loading"))
    _check_head(llm, arguments.layer, arguments.head)
    ids, inserted, shown = _asked(llm, arguments)
    found, seen = report(llm, ids, arguments.top_k, chosen, inserted)
    token = _token(arguments, len(ids))
    if shown:
        found["pictures"] = lens_seen.as_data(shown, seen.attention)
    if arguments.attention or arguments.html:
        check_maps(seen)
    show = arguments.show or ("picture" if shown else "attention" if arguments.layer is not None else None)
    if arguments.plot and show == "picture":
        over.draw(arguments.plot, found, shown, seen.attention, token, arguments.layer, arguments.head)
    elif arguments.plot:
        plot.draw(arguments.plot, found, show or "lens", seen.attention, arguments.layer, arguments.head)
    if arguments.html:
        lens_page.write(arguments.html, found, seen.attention)
    if arguments.json:
        maps = {"attention": as_lists(seen)} if arguments.attention else {}
        print(json.dumps(found | maps, ensure_ascii=False, allow_nan=False))
    elif not (arguments.plot or arguments.html):
        one = None if arguments.head is None else seen.attention[arguments.layer][arguments.head].tolist()
        if show == "picture":
            for line in over.lines(found, shown, seen.attention, token, arguments.layer, arguments.head):
                print(line)
            return 0
        for line in lens_text.lines(found, show, one, cli.colourful()):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
