"""The main job: `python -m minillm.generate --weights PATH --prompt TEXT`.

Generated text goes to stdout as it comes; what it cost goes to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minillm import cli, inference
from minillm.inference import Completion, Timings
from minillm.llm import LLM, load
from minillm.measure import copy_bandwidth, peak_memory
from minillm.sampling import Sampling

DEMO_PROMPT = "Once upon a time"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    return cli.run(lambda: _chat(arguments) if arguments.chat else _complete(arguments))


def _complete(arguments: argparse.Namespace) -> int:
    prompt = _prompt(arguments)
    llm = _load(arguments)
    row, timings = llm.completion(**prompt, **_options(arguments)), Timings()
    interrupted = _write(llm, row, timings, quiet=arguments.json)
    report = _report(llm, timings)
    if arguments.json:
        print(json.dumps(_as_json(row, report), ensure_ascii=False), flush=True)
    else:
        # On a terminal the text ends its line; elsewhere stdout is the text and nothing else.
        print(end="\n" if sys.stdout.isatty() else "", flush=True)
        between = "" if sys.stdout.isatty() else "\n"
        print(between + _report_line(report), file=sys.stderr)
    return cli.EXIT_INTERRUPTED if interrupted else 0


def _write(llm: LLM, row: Completion, timings: Timings, quiet: bool = False) -> bool:
    """Stream the text to stdout; whether Ctrl-C ended it."""
    try:
        for _, piece in inference.generate(llm.model, [row], timings):
            if not quiet:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        rest = row.flush()
        if not quiet:
            print(rest, end="", flush=True)
        row.finish_reason = row.finish_reason or "interrupted"
        return True
    return False


def _chat(arguments: argparse.Namespace) -> int:
    """An interactive session: each line is a turn, and the history goes along. Ends with the input."""
    llm = _load(arguments)
    messages = [{"role": "system", "content": arguments.system}] if arguments.system is not None else []
    terminal = sys.stdin.isatty()
    turn = arguments.prompt
    while True:
        if turn is None:
            print("> " if terminal else "", end="", file=sys.stderr, flush=True)
            turn = _read_line()
        if turn is None:
            return 0
        messages.append({"role": "user", "content": turn})
        row, timings = llm.completion(messages=messages, **_options(arguments)), Timings()
        interrupted = _write(llm, row, timings)
        print(flush=True)
        if interrupted and not terminal:
            return cli.EXIT_INTERRUPTED
        messages.append({"role": "assistant", "content": row.text})
        turn = None


def _load(arguments: argparse.Namespace) -> LLM:
    progress = cli.progress_bar("loading")
    return load(arguments.weights, arguments.dtype, arguments.device, arguments.kernels, progress)


def _prompt(arguments: argparse.Namespace) -> dict[str, Any]:
    """What to complete, as the keyword that `LLM.completion` takes it by."""
    if arguments.prompt_ids is not None:
        return {"prompt_ids": arguments.prompt_ids}
    if arguments.prompt is not None:
        return {"prompt": arguments.prompt}
    if arguments.prompt_file is not None:
        return {"prompt": _utf8(Path(arguments.prompt_file).read_bytes(), arguments.prompt_file)}
    text = "" if sys.stdin is None or sys.stdin.isatty() else _utf8(sys.stdin.buffer.read(), "stdin")
    if arguments.weights is None and not text:
        text = DEMO_PROMPT
        print(f"minillm: no --weights and no --prompt: the built-in demo continues {text!r}", file=sys.stderr)
    elif not text and sys.stdin is not None and sys.stdin.isatty():
        raise ValueError("no prompt; give --prompt TEXT, --prompt-file F, --prompt-ids 1,2,3, or pipe a text in")
    return {"prompt": text}


def _read_line() -> str | None:
    line = sys.stdin.buffer.readline() if sys.stdin else b""
    return _utf8(line, "stdin").rstrip("\n") if line else None


def _utf8(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8; convert the text first"
        ) from None


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(Sampling)] + ["max_new_tokens", "ignore_eos", "stop"]
    return {name: getattr(arguments, name) for name in names}


def _report(llm: LLM, timings: Timings) -> dict[str, float]:
    def rate(count: float, seconds: float) -> float:
        return count / seconds if seconds > 0 else 0.0

    peak = peak_memory(llm.device)  # before the copies that measure the bandwidth
    achieved, possible = (
        rate(timings.decode_steps * llm.bytes_per_step, timings.decode_seconds),
        copy_bandwidth(llm.device),
    )
    return {
        **dataclasses.asdict(timings),
        "prompt_tokens_per_second": rate(timings.prompt_tokens, timings.prompt_seconds),
        "decode_tokens_per_second": rate(timings.decode_tokens, timings.decode_seconds),
        "achieved_gb_per_second": achieved / 1e9,
        "copy_gb_per_second": possible / 1e9,
        "bandwidth_share": achieved / possible,
        "peak_memory_bytes": peak,
    }


def _report_line(report: dict[str, float]) -> str:
    return (
        f"prompt {report['prompt_tokens']} tokens, {report['prompt_tokens_per_second']:.1f} tok/s; "
        f"decode {report['decode_tokens']} tokens, {report['decode_tokens_per_second']:.1f} tok/s, "
        f"{report['achieved_gb_per_second']:.2f} GB/s = {report['bandwidth_share']:.0%} of the "
        f"{report['copy_gb_per_second']:.1f} GB/s this machine copies; "
        f"peak memory {report['peak_memory_bytes'] / 1e6:.0f} MB"
    )


def _as_json(row: Completion, report: dict[str, float]) -> dict[str, Any]:
    return {
        "text": row.text,
        "token_ids": row.token_ids,
        "prompt_token_ids": row.prompt,
        "finish_reason": row.finish_reason,
        "timings": report,
    }


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of ids such as 1,2,3") from None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser("generate", "Run a checkpoint: text in, text out.")
    cli.add_model_arguments(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue (default: stdin)")
    prompt.add_argument("--prompt-file", metavar="F", help="a UTF-8 file with the text to continue")
    prompt.add_argument("--prompt-ids", metavar="1,2,3", type=_ids, help="raw token ids, nothing is added to them")
    parser.add_argument("--chat", action="store_true", help="interactive chat; --prompt is the first turn")
    parser.add_argument("--system", metavar="TEXT", help="system message of a chat")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
    parser.add_argument("--max-new-tokens", metavar="N", type=int)
    parser.add_argument("--ignore-eos", action="store_true", help="go on after a stop token")
    parser.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="stop before this text (repeatable)"
    )
    parser.add_argument("--temperature", metavar="X", type=float, help="0 is greedy")
    parser.add_argument("--top-k", metavar="N", type=int, help="keep the N likeliest tokens")
    parser.add_argument(
        "--top-p", metavar="X", type=float, help="keep the likeliest tokens that hold this much together"
    )
    parser.add_argument("--min-p", metavar="X", type=float, help="drop tokens below X times the likeliest")
    parser.add_argument("--repetition-penalty", metavar="X", type=float)
    parser.add_argument("--presence-penalty", metavar="X", type=float)
    parser.add_argument("--frequency-penalty", metavar="X", type=float)
    parser.add_argument("--seed", metavar="N", type=int)
    arguments = parser.parse_args(argv)
    if arguments.system is not None and not arguments.chat:
        parser.error("--system needs --chat")
    if arguments.chat and (arguments.json or arguments.prompt_ids or arguments.prompt_file):
        parser.error(
            "--chat reads its turns from --prompt and stdin; --json, --prompt-ids and --prompt-file do not apply"
        )
    try:
        torch.device("cpu" if arguments.device == "auto" else arguments.device)
        Sampling(**{f.name: v for f in dataclasses.fields(Sampling) if (v := getattr(arguments, f.name)) is not None})
    except (ValueError, RuntimeError) as error:
        parser.error(str(error).split("\n")[0])
    return arguments


if __name__ == "__main__":
    sys.exit(main())
