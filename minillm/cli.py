"""What the command lines share: one line for an error, exit codes, a progress bar, and the `minillm` entry point.

Exit codes: 0 done, 2 bad input (one line on stderr says what and what to do), 130 interrupted, 141 reader gone.
"""

from __future__ import annotations

import argparse
import codecs
import functools
import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from minillm import __version__
from minillm.config import printable

COMMANDS = {
    "generate": "run a checkpoint: text in, text out; --chat for a conversation",
    "explain": "describe a checkpoint: spec, equations, sizes, tensors",
    "plan": "what a checkpoint needs, before downloading it: bytes, cache, speed, fit, licence",
    "quantize": "write a copy of a checkpoint with int8 or int4 matrices",
    "perplexity": "how well a checkpoint predicts a text, and what quantising costs",
    "diff": "where a model first differs from transformers or another checkpoint, and why",
    "lens": "look inside one forward pass: next tokens, attention, logit lens, norms",
    "routes": "where a mixture of experts sends its tokens",
    "harness": "run the tasks of lm-evaluation-harness",
    "bench": "measure speed against the machine's limits and other engines",
}
WEIGHTS = "checkpoint folder, org/name or org/name@revision (default: the built-in demo)"
EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """An argument parser that reports a mistake in one line; abbreviations are mistakes."""
    made = argparse.ArgumentParser(prog=f"minillm.{program}", description=description, allow_abbrev=False)

    def error(message: str) -> NoReturn:
        print(f"minillm: error: {message}; see --help", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)

    made.error = error  # type: ignore[method-assign]
    return made


def add_model_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--weights", metavar="PATH", help=WEIGHTS)
    add_revision(made)
    made.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--kernels", default="auto", choices=("auto", "reference", "triton"))
    made.add_argument(
        "--keep-quantized", action="store_true", help="FP8 weights stay FP8 in memory, dequantised at each use"
    )
    add_quantize_arguments(made)


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


def add_quantize_arguments(made: argparse.ArgumentParser, required: bool = False) -> None:
    made.add_argument("--quantize", choices=("int8", "int4"), required=required, help="hold matrices as integers")
    made.add_argument("--group-size", metavar="N", type=int, help="values of an int4 row that share a factor (16)")
    made.add_argument("--asymmetric", action="store_true", help="int4 groups have zero points of their own")


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `loading.load` takes of the arguments that `add_model_arguments` adds."""
    names = ("dtype", "device", "kernels", "keep_quantized", "quantize", "group_size")
    options = {name: getattr(arguments, name) for name in names}
    return {"path": arguments.weights, "revision": arguments.revision, **options, "symmetric": not arguments.asymmetric}


def token_ids(text: str) -> list[int]:
    """An argument's type: ids with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of ids such as 1,2,3") from None


def colourful() -> bool:
    """Whether stdout is a terminal whose user has not asked for text without colours (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def run(main: Callable[[], int]) -> int:
    """Call a command's body and turn what users can cause into one line and an exit code."""
    if sys.stdout is None or sys.stderr is None:  # closed by the shell: what goes there goes nowhere
        nowhere = open(os.devnull, "w")  # noqa: SIM115  (it lives as long as the process)
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    _lose_nothing()
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
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        # PyTorch reports a lack of memory as a RuntimeError; any other of its kind is a fault of ours to be seen.
        lack = "OutOfMemoryError" in type(error).__name__ or "DefaultCPUAllocator" in str(error)
        if isinstance(error, RuntimeError) and not lack:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"minillm: error: {printable(message)}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _lose_nothing() -> None:
    """Let stdout take any text. A pipe or file gets UTF-8, whatever a locale or Windows' code page has; a terminal, and
    who has set PYTHONIOENCODING, keeps the encoding, with escapes for what it lacks."""
    if not isinstance(sys.stdout, io.TextIOWrapper) or sys.stdout.errors not in ("strict", "surrogateescape"):
        return  # a notebook's, say, which takes all, or told what to do
    chosen = sys.stdout.isatty() or os.environ.get("PYTHONIOENCODING")
    sys.stdout.reconfigure(encoding=None if chosen else "utf-8", errors="minillm.escaped")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """As JSON has it, \\u1f3d, so that what is JSON stays so. Said once."""
    assert isinstance(error, UnicodeEncodeError)
    _say_escaped(error.encoding)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end


codecs.register_error("minillm.escaped", _escaped)


@functools.cache
def _say_escaped(encoding: str) -> None:
    print(f"minillm: {encoding} lacks characters of this text: set PYTHONIOENCODING=utf-8 to see them", file=sys.stderr)


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


def main(argv: list[str] | None = None) -> int:
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
        print(f"minillm: error: no command {arguments[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return command(arguments[0])(arguments[1:])


def command(name: str) -> Callable[[list[str]], int]:
    """The function behind `python -m minillm.NAME`."""
    module = importlib.import_module(f"minillm.{name}")
    if hasattr(module, "__path__"):  # a command of several files
        module = importlib.import_module(f"minillm.{name}.__main__")
    return module.main
