"""The main job: `python -m minillm.generate --weights PATH --prompt TEXT`.

Generated text goes to stdout as it comes; what it cost goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minillm import cli
from minillm.engine.completion import Completion, Result, Timings
from minillm.engine.sampling import LIMITS, Sampling
from minillm.guard import files, jsonfile, screen
from minillm.guard.screen import note
from minillm.llm import LLM
from minillm.loading import load
from minillm.media import flags
from minillm.ops.cpu import beside
from minillm.parallel import launch
from minillm.report import cost as report
from minillm.text import chat

DEMO_PROMPT = "Once upon a time"
ENDLESS = 2**20  # new tokens that nobody waits for unless asked to
ENDS = ("max_new_tokens", "ignore_eos", "stop", "stop_token_ids")  # what of `LLM.generate` says where a text ends


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    if (code := launch.elsewhere(arguments, "generate", argv, lambda: _model(arguments))) is not None:
        return code
    if argv is None or sys.argv[1:2] == ["generate"]:  # the process is for this text
        beside.start()
    if arguments.chat:
        return _chat(arguments)
    return _complete(arguments) if arguments.samples is None else _sample(arguments)


def _complete(arguments: argparse.Namespace) -> int:
    prompt = _prompt(arguments)
    llm, ways = _load(arguments)
    row, timings = llm.completion(**prompt, **flags.given(arguments), **_options(arguments)), Timings()
    if llm.tokenizer is None and not arguments.json:
        note(f"{llm.folder} has no tokenizer, so there is no text to print; --json gives the ids")
    interrupted = _write(llm, row, timings, ways, quiet=arguments.json)
    cost = report.measured(llm, timings, ways["draft"], quick=interrupted)
    if arguments.json:
        print(json.dumps(report.as_json(Result.of(row, timings), cost), ensure_ascii=False), flush=True)
    else:
        # On a terminal the text ends its line; elsewhere stdout is the text and nothing else.
        print(end="\n" if sys.stdout.isatty() else "", flush=True)
        between = "" if sys.stdout.isatty() else "\n"
        print(between + report.line(cost), file=sys.stderr)
    return cli.EXIT_INTERRUPTED if interrupted else 0


def _sample(arguments: argparse.Namespace) -> int:
    """Several completions of a prompt, each printed when all are there."""
    prompt = _prompt(arguments)
    llm, ways = _load(arguments)
    results = llm.generate(**prompt, **flags.given(arguments), n=arguments.samples, **_options(arguments), **ways)
    assert isinstance(results, list)
    cost = report.measured(llm, results[0].timings, ways["draft"], quick=False)
    for number, result in enumerate(results, 1):
        if arguments.json:
            print(json.dumps(report.as_json(result, cost), ensure_ascii=False))
        else:
            screen.text(f"--- {number}\n{result.text}\n")
    if not arguments.json:
        print(report.line(cost), file=sys.stderr)
    return 0


def _write(llm: LLM, row: Completion, timings: Timings, ways: dict[str, Any], quiet: bool = False) -> bool:
    """Stream the text to stdout; whether Ctrl-C ended it."""
    try:
        for _, piece in llm.run([row], timings, **ways):
            if not quiet:
                screen.text(piece)
    except KeyboardInterrupt:
        rest = row.flush()
        if not quiet:
            screen.text(rest)
        row.finish_reason = row.finish_reason or "interrupted"
        return True
    return False


def _chat(arguments: argparse.Namespace) -> int:
    """An interactive session: each line is a turn, and the history goes along. Ends with the input.

    On a terminal a turn that fails (too long for the context, refused by the template) is reported and forgotten.
    """
    chat.expect()
    llm, ways = _load(arguments)
    if arguments.chat_template is not None:
        llm.use_chat_template(files.read_text(files.text_file("--chat-template", arguments.chat_template)))
    llm.chat_template()  # without one there is nothing to wait for
    screen.release()  # before the first turn is waited for
    messages = [{"role": "system", "content": arguments.system}] if arguments.system is not None else []
    prefill = arguments.prefill or ""
    begun = [{"role": "assistant", "content": prefill}] if prefill else []
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() edits lines once it is loaded)
    turn, shown = arguments.prompt, flags.Shown(arguments)
    while turn is not None or (turn := _read_turn(terminal)) is not None:
        line, turn, before = turn, None, messages
        try:
            if shown.takes(line):
                continue
            messages = [*messages, shown.turn(line)]
            variables = {"template_variables": arguments.template_variables, **shown.limit(messages)}
            row, timings = llm.completion(messages=messages + begun, **variables, **_options(arguments)), Timings()
        except ValueError as error:
            if not terminal:
                raise
            note(str(error))
            messages = before
            continue
        screen.text(prefill)
        interrupted = _write(llm, row, timings, ways)
        print(flush=True)
        print(report.line(report.measured(llm, timings, ways["draft"], quick=True)), file=sys.stderr)
        if interrupted and not terminal:
            return cli.EXIT_INTERRUPTED
        if row.finish_reason == "length":
            note(f"cut after {len(row.token_ids)} tokens, by --max-new-tokens or the context of {llm.spec.context}")
        thinking = {"thinking": row.reasoning} if row.reasoning else {}
        messages.append({"role": "assistant", "content": prefill + row.text, **thinking})
    return 0


def _read_turn(terminal: bool) -> str | None:
    """The next line that is not empty; None at the end of the input."""
    while True:
        if terminal:
            try:
                if not sys.stdout.isatty():
                    print("> ", end="", file=sys.stderr, flush=True)  # stdout is for the text
                line = input("> " if sys.stdout.isatty() else "")
            except EOFError:
                return None
        else:
            data = files.read_line(sys.stdin.buffer, "stdin") if sys.stdin else b""
            if not data:
                return None
            line = files.utf8(data, "stdin")
        if line.strip():
            return line.rstrip("\r\n")


def _model(arguments: argparse.Namespace) -> LLM:
    return load(**cli.model_options(arguments), **launch.options(arguments), progress=cli.progress_bar("loading"))


def _load(arguments: argparse.Namespace) -> tuple[LLM, dict[str, Any]]:
    """The model, and how it is to be run: what `LLM.run` takes."""
    chosen = (arguments.dtype, arguments.device, arguments.kernels)
    llm = _model(arguments)
    draft = (
        load(arguments.draft, *chosen, cli.progress_bar("loading the draft")) if arguments.draft is not None else None
    )
    stated = llm.generation_config.get("max_new_tokens")
    if arguments.max_new_tokens is None and isinstance(stated, int) and stated > ENDLESS:
        raise ValueError(f"generation_config.json asks for {stated:,} new tokens; say how many with --max-new-tokens")
    names = ("deterministic", "draft_tokens", "prompt_lookup")
    return llm, {"draft": draft, **{name: getattr(arguments, name) for name in names}}


def _prompt(arguments: argparse.Namespace) -> dict[str, Any]:
    """What to complete, as the keyword that `LLM.completion` takes it by. A file is taken as it is; of a pipe the
    newline that `echo` adds is left out."""
    if arguments.prompt_ids is not None:
        return {"prompt_ids": arguments.prompt_ids}
    if arguments.prompt is not None:
        return {"prompt": arguments.prompt}
    if arguments.prompt_file not in (None, "-"):
        path = Path(arguments.prompt_file)
        if not path.exists() or path.is_dir():
            kind = "a folder" if path.is_dir() else "no such file"
            raise ValueError(f"--prompt-file {path}: {kind}; give a text file")
        return {"prompt": files.read_text(path, pipe=True)}
    terminal = sys.stdin is None or (sys.stdin.isatty() and arguments.prompt_file != "-")
    text = (
        ""
        if terminal
        else files.utf8(files.read_stream(sys.stdin.buffer, "stdin"), "stdin").removesuffix("\n").removesuffix("\r")
    )
    if arguments.weights is None and not text:
        text = DEMO_PROMPT
        note(f"no --weights and no --prompt: the built-in demo continues {text!r}")
    elif not text and terminal:
        raise ValueError("no prompt; give --prompt TEXT, --prompt-file F, --prompt-ids 1,2,3, or pipe a text in")
    return {"prompt": text}


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = [*LIMITS, *ENDS]
    return {name: getattr(arguments, name) for name in names}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = jsonfile.parsed(text, "the argument")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a JSON object")
    return value


def _add_chat(parser: argparse.ArgumentParser) -> None:
    """A conversation, and what only goes with one."""
    parser.add_argument("--chat", action="store_true", help="interactive chat; --prompt is the first turn")
    parser.add_argument("--system", metavar="TEXT", help="system message of a chat")
    parser.add_argument("--prefill", metavar="TEXT", help="how each answer of a chat begins; the model goes on with it")
    parser.add_argument("--chat-template", metavar="FILE", help="a Jinja template in place of the checkpoint's")
    variables = 'such as {"enable_thinking": false}'
    parser.add_argument("--template-variables", metavar="JSON", type=_json_object, help=variables)


def _add_ways(parser: argparse.ArgumentParser) -> None:
    """How the text is come by, whatever it is."""
    guesses = parser.add_mutually_exclusive_group()
    guesses.add_argument("--draft", metavar="PATH", help="a smaller checkpoint with the same vocabulary guesses tokens")
    lookup = "guess what followed the last N tokens before (default 3)"
    guesses.add_argument("--prompt-lookup", metavar="N", type=int, nargs="?", const=3, help=lookup)
    parser.add_argument("--draft-tokens", metavar="K", type=int, help="guesses for each pass of the model (default 4)")
    exact = "check guesses in the shapes of single steps: bit for bit what comes without, and slower"
    parser.add_argument("--deterministic", action="store_true", help=exact)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser(
        "generate", "Run a checkpoint: text in, text out, with the defaults of its generation_config.json."
    )
    cli.add_model_arguments(parser)
    launch.add_arguments(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue (default: stdin)")
    prompt.add_argument("--prompt-file", metavar="F", help="a UTF-8 file with the text to continue; - is stdin")
    ids = "raw token ids, nothing is added to them"
    prompt.add_argument("--prompt-ids", metavar="1,2,3", type=cli.token_ids, help=ids)
    flags.add_arguments(parser)
    _add_chat(parser)
    samples = "several completions of the prompt, which is read once; sample i with --seed + i"
    parser.add_argument("--samples", metavar="N", type=int, help=samples)
    parser.add_argument("--json", action="store_true", help="a JSON object on stdout instead of text, or one a sample")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, help="default: generation_config.json, else 256")
    parser.add_argument("--ignore-eos", action="store_true", help="go on after a stop token")
    stop = "stop before this text, which may be a special token (repeatable; default: generation_config.json)"
    parser.add_argument("--stop", metavar="TEXT", action="append", help=stop)
    parser.add_argument("--stop-token-ids", metavar="1,2", type=cli.token_ids, help="stop at these tokens too")
    parser.add_argument("--temperature", metavar="X", type=float, help="0 is greedy")
    parser.add_argument("--top-k", metavar="N", type=int, help="keep the N likeliest tokens")
    parser.add_argument("--top-p", metavar="X", type=float, help="keep the likeliest that hold this much together")
    parser.add_argument("--min-p", metavar="X", type=float, help="drop tokens below X times the likeliest")
    parser.add_argument("--repetition-penalty", metavar="X", type=float)
    parser.add_argument("--presence-penalty", metavar="X", type=float)
    parser.add_argument("--frequency-penalty", metavar="X", type=float)
    parser.add_argument("--seed", metavar="N", type=int)
    _add_ways(parser)
    return _checked(parser.parse_args(argv), parser)


def _checked(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, where they go together."""
    speculates = arguments.draft is not None or arguments.prompt_lookup
    if arguments.draft_tokens and not speculates:
        parser.error("--draft-tokens says how many tokens are guessed at a time; give --draft or --prompt-lookup too")
    if arguments.deterministic and not speculates:
        note("a prompt by itself has nothing to depend on: --deterministic without effect")
    of_chats = (arguments.system, arguments.template_variables, arguments.prefill, arguments.chat_template)
    if not arguments.chat and any(value is not None for value in of_chats):
        parser.error("--system and --template-variables need --chat; so do --prefill and --chat-template")
    if arguments.chat and (arguments.json or arguments.prompt_ids or arguments.prompt_file or arguments.samples):
        others = "--json, --prompt-ids, --prompt-file and --samples"
        parser.error(f"--chat reads its turns from --prompt and stdin; {others} do not apply")
    if arguments.samples is not None and arguments.samples < 1:
        parser.error(f"--samples is {arguments.samples}, it must be at least 1")
    try:
        Sampling(**{name: v for name in LIMITS if (v := getattr(arguments, name)) is not None})
    except ValueError as error:
        parser.error(str(error))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
