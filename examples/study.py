"""What the studies in this folder share as programs: figures on stdout, and with --plot a picture of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from minillm import cli
from minillm.report import picture

Draw = Callable[[Path], None]


def parser(description: str | None, drawn: str) -> argparse.ArgumentParser:
    """An argument parser with --plot, which draws `drawn`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--plot", metavar="FILE", type=Path, help=f"draw {drawn} as a PNG")
    return made


def main(made: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Draw]) -> None:
    """Print what `measure` finds and, where asked, draw it with what that returns; then leave."""
    arguments = made.parse_args()

    def body() -> int:
        if arguments.plot:
            picture.check(arguments.plot)
        draw = measure(arguments)
        if arguments.plot:
            draw(arguments.plot)
            print(f"wrote {arguments.plot}")
        return 0

    sys.exit(cli.run(body))
