"""What the command lines share: one line for an error, exit codes, a progress bar, and the `minillm` entry point.

Exit codes: 0 done, 1 a fault of this program, 2 bad input (one line on stderr says what and what to do), 130
interrupted, 141 reader gone.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import minillm
from minillm import __version__
from minillm.guard import screen

COMMANDS = {
    "generate": "run a checkpoint: text in, text out; --chat for a conversation",
    "serve": "answer over HTTP: the APIs of OpenAI, Anthropic and Ollama, and a page to chat at",
    "tune": "train a checkpoint on your own data: an adapter beside it, or all of it",
    "explain": "describe a checkpoint: spec, equations, sizes, tensors",
    "plan": "what a checkpoint needs, before downloading it: bytes, cache, speed, fit, licence",
    "quantize": "write a copy of a checkpoint with int8 or int4 matrices, or as a GGUF file",
    "merge": "write a copy of a checkpoint with LoRA adapters in its weights",
    "perplexity": "how well a checkpoint predicts a text, and what quantising costs",
    "diff": "where a model first differs from transformers or another checkpoint, and why",
    "lens": "look inside one forward pass: next tokens, attention, logit lens, norms",
    "routes": "where a mixture of experts sends its tokens",
    "harness": "run the tasks of lm-evaluation-harness",
    "bench": "measure speed against the machine's limits and other engines",
}
WEIGHTS = "checkpoint folder, .gguf file, org/name or org/name@revision (default: the built-in demo)"
ADAPTER_NAME = re.compile(r"[\w.:@/-]{1,200}")
EXIT_FAULT, EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 2, 130, 141
# What PyTorch, C++ and OpenMP say in a RuntimeError where the system gives no more memory or threads.
LACKS = ("DefaultCPUAllocator", "not enough memory", "bad_alloc", "enforce fail at alloc")
NO_THREADS = ("can't start new thread", "Thread creation failed", "Resource temporarily unavailable")


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line; abbreviations and digits of other scripts are."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self.register("type", int, whole)
        self.register("type", float, number)

    def error(self, message: str) -> NoReturn:
        screen.error(f"{message}; see --help")
        sys.exit(EXIT_BAD_INPUT)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if arg_strings == ["--"] and action.option_strings and action.nargs is None:
            value = self._get_value(action, "--")  # of --prompt=--, which older Pythons take for no value
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """The arguments of a command."""
    return _Parser(prog=f"minillm.{program}", description=description)


def add_model_arguments(made: argparse.ArgumentParser, several: bool = False) -> None:
    """`several` adapters can be given, each with the name by which requests choose it."""
    made.add_argument("--weights", metavar="PATH", help=WEIGHTS)
    add_revision(made)
    made.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--kernels", default="auto", choices=("auto", "reference", "triton"))
    add_dequantize(made)
    add_quantize_arguments(made)
    if several:
        what = "a LoRA adapter in PEFT's format, for all requests, or for those that ask for NAME (repeatable)"
        made.add_argument("--adapter", metavar="FOLDER or NAME=FOLDER", action="append", help=what)
    else:
        made.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter in PEFT's format, for all requests")


def add_dequantize(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--dequantize", dest="keep_quantized", action="store_false", help="make plain numbers of quantised matrices"
    )


def add_revision(made: argparse.ArgumentParser) -> None:
    made.add_argument("--revision", metavar="REV", help="branch, tag or commit of an org/name (default: main)")


def add_source(made: argparse.ArgumentParser) -> Any:
    """--weights, or --config where no weights are needed, in a group that takes other sources too."""
    source = made.add_mutually_exclusive_group()
    source.add_argument("--weights", metavar="PATH", help=WEIGHTS)
    add_revision(made)
    source.add_argument("--config", metavar="FILE", type=Path, help="a config.json, without any weights")
    return source


def revision(arguments: argparse.Namespace) -> str | None:
    """What --revision names. Raises ValueError where there is no --weights that it could be of."""
    if arguments.revision is not None and arguments.weights is None:
        raise ValueError(f"--revision {arguments.revision} without --weights; give --weights org/name, or org/name@REV")
    return str(arguments.revision) if arguments.revision is not None else None


def config_file(path: Path) -> Path:
    """What --config names. Raises ValueError where there is no such file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a config.json")
    return path


def add_quantize_arguments(made: argparse.ArgumentParser, required: bool = False, files: Sequence[str] = ()) -> None:
    """`files` are the kinds that are written to a file only."""
    what = "hold matrices as integers" + ("; the other kinds are those of a GGUF file" if files else "")
    made.add_argument("--quantize", choices=("int8", "int4", *files), required=required, help=what)
    made.add_argument("--group-size", metavar="N", type=int, help="values of an int4 row that share a factor (16)")
    made.add_argument("--asymmetric", action="store_true", help="int4 groups have zero points of their own")


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `loading.load` takes of the arguments that `add_model_arguments` adds."""
    names = ("dtype", "device", "kernels", "keep_quantized", "quantize", "group_size", "adapter")
    options = {name: getattr(arguments, name) for name in names}
    if isinstance(options["adapter"], list):
        options["adapter"] = adapters(options["adapter"])
    return {"path": arguments.weights, "revision": arguments.revision, **options, "symmetric": not arguments.asymmetric}


def adapters(given: Sequence[str]) -> str | dict[str, str]:
    """What --adapter names: a folder for all requests, or folders by the names that requests choose them by. Raises
    ValueError for both together, and for a name that is none or not the only one."""
    if len(given) == 1 and ("=" not in given[0] or Path(given[0]).is_dir()):
        return given[0]
    found: dict[str, str] = {}
    for each in given:
        name, equals, folder = each.partition("=")
        if not equals or not folder or not ADAPTER_NAME.fullmatch(name):
            raise ValueError(f"--adapter {each}: of several each needs a name, as in --adapter NAME=FOLDER")
        if name in found:
            raise ValueError(f"--adapter {name} is given twice; give each a name of its own")
        found[name] = folder
    return found


def whole(text: str) -> int:
    """What `type=int` means: a whole number in the digits 0 to 9, and no more of them than any setting has."""
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{screen.shown(text)} is not a whole number")
    return int(text)


def number(text: str) -> float:
    """What `type=float` means: a number that a float holds, and does not take for 0."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.ASCII | re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{screen.shown(text)} is not a number")
    value = float(text)
    if math.isinf(value) or (value == 0 and re.search("[1-9]", re.split("e", text, flags=re.IGNORECASE)[0])):
        raise argparse.ArgumentTypeError(f"{screen.shown(text)} is beyond what a float holds")
    return value


def token_ids(text: str) -> list[int]:
    """An argument's type: ids with commas between them."""
    try:
        return [whole(part.strip()) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{screen.shown(text)} is not a list of ids such as 1,2,3") from None


def colourful() -> bool:
    """Whether stdout is a terminal whose user has not asked for text without colours (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


class Main(Protocol):
    """A command: its arguments, by default those of the process, in; its exit code out."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def command_line(main: Main) -> Main:
    """A command's `main(argv)`, arguments and all, with what `run` promises."""

    @functools.wraps(main)
    def called(argv: Sequence[str] | None = None) -> int:
        return run(lambda: main(argv))

    return called


def run(main: Callable[[], int]) -> int:
    """Call a command's body and turn what users can cause into one line and an exit code."""
    if signal.getsignal(signal.SIGINT) is minillm._quietly:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with screen.guarded():
        try:
            code = main()
            sys.stdout.flush()  # here, where a reader that has gone is no surprise, and not on the way out
            return code
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            # Whoever read our output has gone. Python flushes stdout once more on its way out: let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BROKEN_PIPE
        except (ValueError, OSError) as error:
            screen.error(str(error) or type(error).__name__)
            return EXIT_BAD_INPUT
        except Exception as error:
            return _said(error)


def _said(error: Exception) -> int:
    """One line for a lack of memory or threads, which PyTorch reports as a RuntimeError; and for a fault of ours."""
    said = str(error)
    if isinstance(error, RuntimeError) and any(each in said for each in NO_THREADS):
        advice = "allow more of them (ulimit -u, pids of a container), or memory for them"
        screen.error(f"the system starts no more threads ({said}); {advice}")
        return EXIT_BAD_INPUT
    if isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__ or any(x in said for x in LACKS):
        screen.error(f"not enough memory ({said or 'nothing is left'}); take a smaller model, context or batch")
        return EXIT_BAD_INPUT
    if os.environ.get("MINILLM_TRACEBACK"):
        traceback.print_exc()
    at = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(at.filename).name}:{at.lineno}"
    advice = "please report it; MINILLM_TRACEBACK=1 shows where it comes from"
    screen.error(f"a fault of minillm itself: {type(error).__name__} {said} ({place}); {advice}")
    return EXIT_FAULT


def progress_bar(label: str, unit: str = "B") -> Callable[[int, int], None]:
    """A function for `load(progress=…)`: a bar on a terminal once a second has passed."""
    bar: Any = None

    def update(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            from tqdm import tqdm

            quiet = not sys.stderr.isatty()
            bar = tqdm(desc=label, total=total, unit=unit, unit_scale=True, delay=1.0, leave=False, disable=quiet)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return update


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """The console script: `minillm generate …` is `python -m minillm.generate …`."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: minillm COMMAND [options], or python -m minillm.COMMAND; each has --help\n")
        for name, line in COMMANDS.items():
            print(f"  {name:12}{line}")
        return 0 if arguments else EXIT_BAD_INPUT
    if arguments[0] == "--version":
        print(f"minillm {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        screen.error(f"no command {arguments[0]!r}; there are {', '.join(COMMANDS)}")
        return EXIT_BAD_INPUT
    return command(arguments[0])(arguments[1:])


def command(name: str) -> Main:
    """The function behind `python -m minillm.NAME`."""
    module = importlib.import_module(f"minillm.{name}")
    if hasattr(module, "__path__"):  # a command of several files
        module = importlib.import_module(f"minillm.{name}.__main__")
    return module.main


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated lists of known words."""

    def names(text: str) -> list[str]:
        found = list(dict.fromkeys(text.split(",")))
        if odd := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{odd[0]!r} is none of {', '.join(known)}")
        return found

    return names
