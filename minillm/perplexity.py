"""How well a model predicts a text, and what quantising it costs:

    python -m minillm.perplexity --weights PATH --text FILE [--quantize int8 | int4] [--context N] [--stride N] [--json]

The perplexity is exp of the mean of -log p(token | the tokens before it), over all tokens of the text but the first.
What comes before is cut to a window: windows of `context` tokens begin `stride` tokens apart, and each counts the
predictions that the window before it has not made. With stride = context no token is read twice; a smaller one gives
every prediction behind the first window at least context - stride tokens to go by, and takes longer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from minillm import cli
from minillm.engine.scoring import score
from minillm.engine.windows import MAX_CONTEXT, sizes, windows
from minillm.guard import files
from minillm.llm import LLM
from minillm.loading import load
from minillm.text.tokenizer import Tokenizer

MAX_NATS = 700  # a token: exp of more leaves the range of a float


def nats(
    llm: LLM, ids: Sequence[int], context: int, stride: int, progress: Callable[[int, int], None] = lambda *_: None
) -> float:
    """The sum of -log p over all tokens but the first, in nats."""
    planned = windows(len(ids), context, stride)
    pairs = [(ids[first : last + 1 - count], ids[last + 1 - count : last + 1]) for first, last, count in planned]
    found = score(llm.model, pairs, progress=lambda done, _: progress(planned[done - 1][1], len(ids) - 1))
    return -sum(logprob for logprob, _ in found)


def measure(llm: LLM, text: str, context: int | None, stride: int | None, label: str) -> dict[str, Any]:
    """The perplexity of a text. Raises ValueError for a text or windows that cannot be."""
    if llm.tokenizer is None:
        raise ValueError(f"{llm.folder}: no tokenizer.json or tokenizer.model, without which a text is no tokens")
    context, stride = sizes(llm.spec, context, stride)
    ids = llm.tokenizer.encode(text)
    if len(ids) < 2:
        raise ValueError(f"the text has {len(ids)} tokens, and nothing to predict; give a longer one")
    size = _predicted_bytes(llm.tokenizer, text, ids[0])
    started = time.perf_counter()
    mean = nats(llm, ids, context, stride, cli.progress_bar(label, unit=" tokens")) / (len(ids) - 1)
    if not math.isfinite(mean):
        raise ValueError(f"the logits leave the range of {llm.model.dtype}; try --dtype float32")
    if mean > MAX_NATS:
        raise ValueError(f"the perplexity is exp({mean:.6g}), too large for a number; are these the right weights?")
    return {
        "nats": mean,
        "perplexity": math.exp(mean),
        "bits_per_byte": mean * (len(ids) - 1) / math.log(2) / size,
        "tokens": len(ids) - 1,
        "context": context,
        "stride": stride,
        "seconds": time.perf_counter() - started,
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "parameter_bytes": sum(parameter.nbytes for parameter in llm.model.parameters()),
    }


def _predicted_bytes(tokenizer: Tokenizer, text: str, first: int) -> int:
    """UTF-8 bytes of the text behind its first token, which nothing predicts; a BOS is none of the text's."""
    known = "" if first == tokenizer.bos_id else tokenizer.decode([first], skip_special=False)
    return max(len(text.encode()) - len(known.encode()), 1)


def compare(arguments: argparse.Namespace, text: str) -> dict[str, Any]:
    """`measure` before, and with --quantize after, and the change. The quantised one goes first, so that what is wrong
    with it is said at once."""
    options = cli.model_options(arguments)
    plain = {**options, "quantize": None, "group_size": None, "symmetric": True}
    runs = {"after": options, "before": plain} if arguments.quantize else {"before": options}
    found: dict[str, Any] = {"weights": str(arguments.weights or "demo"), "text": arguments.text or "stdin"}
    for name, given in runs.items():
        llm = load(**given, progress=cli.progress_bar("loading"))
        found[name] = measure(llm, text, arguments.context, arguments.stride, given["quantize"] or "reading")
        del llm
    if arguments.quantize:
        ratio = math.exp(found["after"]["nats"] - found["before"]["nats"])  # each is from 0 to MAX_NATS
        found |= {"quantize": arguments.quantize, "change_percent": 100 * (ratio - 1)}
    return found


def _line(name: str, each: dict[str, Any]) -> str:
    return (
        f"{name:10}perplexity {each['perplexity']:.4f} ({each['nats']:.5f} nats, {each['bits_per_byte']:.4f} bits per "
        f"byte) over {each['tokens']:,} tokens, windows of {each['context']} every {each['stride']}, {each['dtype']}, "
        f"{each['parameter_bytes'] / 1e6:,.1f} MB, {each['seconds']:.1f} s"
    )


def _text(path: str | None) -> str:
    if path is not None:
        return files.read_text(files.text_file("--text", path))
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("no text; give --text FILE, or pipe one in")
    return files.read_stdin()


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("perplexity", "Say how well a checkpoint predicts a text, and with --quantize what that costs.")
    cli.add_model_arguments(parser)
    parser.add_argument("--text", metavar="FILE", help="a UTF-8 file (default: stdin)")
    parser.add_argument("--context", metavar="N", type=int, help=f"tokens of a window (default: {MAX_CONTEXT} at most)")
    parser.add_argument("--stride", metavar="N", type=int, help="from one window to the next (default: half of one)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
    arguments = parser.parse_args(argv)
    found = compare(arguments, _text(arguments.text))
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False, allow_nan=False))
        return 0
    print(_line("plain" if arguments.quantize else "", found["before"]).strip())
    if arguments.quantize:
        print(_line(arguments.quantize, found["after"]))
        print(f"{'change':10}{found['change_percent']:+.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
