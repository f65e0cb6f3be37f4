"""What a checkpoint takes, before anything of it is downloaded or loaded:

    python -m minillm.plan --weights PATH | --config FILE [--context N] [--batch N] [--gpu 24GB | NAME] [--gpus N]
                           [--ranks N | --cluster MACHINESxGPUS --link SPEED --network SPEED]
                           [--quantize fp8 | int8 | int4] [--dtype TYPE] [--image FILE | WxH]
                           [--plot FILE.png] [--json]
    python -m minillm.plan --table [PATH PATH ...] [--plot FILE.png] [--json]
    python -m minillm.plan --devices [--json]

Its size in files and in memory, plain and quantised, its cache, its operations, what a device could do with it at best,
whether it fits one, and what its licence asks for. All of it is computed from config.json; an index or the headers of
the files, where they are there, are what the size is checked against. docs/plan.md has the formulas and the JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minillm import cli, hub
from minillm.guard.screen import printable
from minillm.parallel.split import MOST
from minillm.plan import plot
from minillm.plan.budget import Question, budget
from minillm.plan.cluster import Cluster, cluster
from minillm.plan.devices import DEVICES, device, table
from minillm.plan.fit import MAX_BATCH, MAX_DEVICES
from minillm.plan.report import aligned, lines, markdown, round_sizes, round_table
from minillm.plan.report import table as checkpoints
from minillm.plan.storage import WORDS
from minillm.report import seeing
from minillm.weights import ints

# What asks about one checkpoint, by its name in the parsed arguments.
QUESTIONS = ("context", "batch", "gpu", "gpus", "ranks", "cluster", "link", "network", "quantize", "dtype",
             "group_size", "asymmetric", "image")  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    made = cli.parser("plan", "Say what a checkpoint takes before it is downloaded or loaded, and whether it fits.")
    source = cli.add_source(made)
    source.add_argument("--table", metavar="PATH", nargs="*", help="several side by side, in Markdown; or round sizes")
    source.add_argument("--devices", action="store_true", help="the devices that --gpu knows by name")
    made.add_argument("--context", metavar="N", type=int, help="positions of a sequence (default: 8192 at most)")
    made.add_argument("--batch", metavar="N", type=int, help="sequences at once (default: 1)")
    sized = "whether it fits: 24GB, 80 GiB, or a name of --devices"
    made.add_argument("--gpu", metavar="SIZE | NAME", nargs="+", help=sized)
    made.add_argument("--gpus", metavar="N", type=int, help="how many such GPUs share weights and cache (default: 1)")
    made.add_argument("--ranks", metavar="N", type=int, help="what each of N processes with a GPU each holds")
    spread = "how fast each split over these machines and their GPUs could be"
    made.add_argument("--cluster", metavar="MACHINESxGPUS", help=spread)
    made.add_argument("--link", metavar="SPEED", help="between two GPUs of a machine: 450GB/s,10us")
    made.add_argument("--network", metavar="SPEED", help="between two machines: 50GB/s,30us")
    made.add_argument("--quantize", choices=("fp8", "int8", "int4"), help="format of the matrices (default: as stored)")
    made.add_argument("--dtype", choices=tuple(WORDS), help="dtype of all else and of the cache (default: as stored)")
    made.add_argument("--group-size", metavar="N", type=int, help="values of an int4 row that share a factor (16)")
    made.add_argument("--asymmetric", action="store_true", help="int4 groups have zero points of their own")
    made.add_argument("--image", metavar="FILE | WxH", help=seeing.IMAGE)
    made.add_argument("--plot", metavar="FILE.png", type=Path, help="draw the cache over the context, and the weights")
    made.add_argument("--json", action="store_true", help="one JSON object on stdout; a list with --table, --devices")
    return made


def _question(arguments: argparse.Namespace) -> Question:
    """What is asked. Raises ValueError for what cannot be, and for what would have no effect."""
    ranks = arguments.ranks or 1
    if arguments.ranks is not None and arguments.gpus not in (None, arguments.ranks):
        raise ValueError(f"--gpus is {arguments.gpus} and --ranks {ranks}; each rank has one: leave out one of them")
    if arguments.gpus is not None and arguments.gpu is None:
        raise ValueError("--gpus without --gpu; give --gpu 24GB or the name of a device")
    if (arguments.group_size is not None or arguments.asymmetric) and arguments.quantize != "int4":
        raise ValueError("--group-size and --asymmetric go with --quantize int4")
    for name, limit in {"batch": MAX_BATCH, "gpus": MAX_DEVICES, "ranks": MOST}.items():
        value = getattr(arguments, name)
        if value is not None and not 1 <= value <= limit:
            raise ValueError(f"--{name} is {value}, it must be from 1 to {limit}")
    return Question(
        context=arguments.context,
        batch=arguments.batch or 1,
        device=None if arguments.gpu is None else device(" ".join(arguments.gpu)),
        devices=arguments.gpus or ranks,
        ranks=ranks,
        cluster=_cluster(arguments),
        dtype=arguments.dtype,
        quantize=arguments.quantize,
        int4=ints.scheme("int4", arguments.group_size, not arguments.asymmetric),
        image=arguments.image,
    )


def _cluster(arguments: argparse.Namespace) -> Cluster | None:
    """The machines asked about. Raises ValueError for flags that go with others that are not there."""
    if arguments.cluster is None:
        if arguments.link or arguments.network:
            raise ValueError("--link and --network go with --cluster MACHINESxGPUS")
        return None
    if arguments.gpu is None or device(" ".join(arguments.gpu)).bandwidth is None:
        raise ValueError("--cluster needs --gpu with a name of --devices, whose bandwidth is known")
    if arguments.gpus is not None or arguments.ranks is not None:
        raise ValueError("--cluster tries all numbers of ranks: leave out --gpus and --ranks")
    if arguments.link is None:
        raise ValueError("--cluster needs --link, such as 450GB/s,10us")
    return cluster(arguments.cluster, arguments.link, arguments.network)


def _several(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """The JSON of --table or --devices, and their lines."""
    which = "--devices" if arguments.devices else "--table"
    given = [getattr(arguments, name) for name in (*QUESTIONS, "revision")]
    if any(each is not None and each is not False for each in given):
        raise ValueError(
            f"{which} takes --json" + ("" if arguments.devices else " and --plot") + ", and no other option"
        )
    if arguments.plot and not arguments.table:
        raise ValueError(f"--plot draws checkpoints, and {which} names none; give --table PATH PATH ...")
    if arguments.devices:
        return [each._asdict() for each in DEVICES.values()], aligned(table())
    if not arguments.table:
        return round_sizes(), markdown(round_table())
    if arguments.plot:
        plot.check(arguments.plot, len(arguments.table))
    reports = [budget(hub.resolve(each, tensors=False, card=True), Question()) for each in arguments.table]
    if arguments.plot:
        plot.draw(arguments.plot, reports)
    return reports, markdown(checkpoints(reports))


def _one(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """The JSON of a checkpoint's plan, and its lines."""
    question, revision = _question(arguments), cli.revision(arguments)
    if arguments.plot:
        plot.check(arguments.plot)
    config = arguments.config and cli.config_file(arguments.config)
    report = budget(config or hub.resolve(arguments.weights, False, True, revision), question)
    if arguments.plot:
        plot.draw(arguments.plot, [report])
    return report, lines(report)


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    several = arguments.devices or arguments.table is not None
    found, text = _several(arguments) if several else _one(arguments)
    print(json.dumps(found, ensure_ascii=False) if arguments.json else "\n".join(map(printable, text)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
