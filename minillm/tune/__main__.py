"""Train a checkpoint on your own data:

    python -m minillm.tune --weights PATH --data FILE.jsonl --output FOLDER [--rank 16] [--rate 2e-4] [--epochs 3]
    python -m minillm.tune … --quantize int4        the base quantised, for models that else do not fit
    python -m minillm.tune … --full                 all weights instead of an adapter beside them
    python -m minillm.tune … --preference dpo       of pairs of answers, one chosen and one rejected
    python -m minillm.tune … --teacher PATH         what a larger model says, of the same vocabulary
    python -m minillm.tune … --ranks 2              in two processes, which share rows and the model's weights
    python -m minillm.tune … --ranks 2 --split      which share every layer instead, for layers that one cannot hold
    python -m minillm.tune … --show 3               only print examples, with what is learnt of them in green

What it takes is printed before anything is loaded, and refused where it does not fit. The output is an adapter that
`--adapter` and PEFT take, or a checkpoint. Ctrl-C saves, and the same command goes on from there. docs/tune.md has
recipes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from minillm import cli
from minillm.parallel import launch
from minillm.tune import job
from minillm.tune.optimizers import KINDS, SCHEDULES
from minillm.tune.prepare import check, prepare


def _parser() -> argparse.ArgumentParser:
    made = cli.parser("tune", "Train a checkpoint on your own data: an adapter beside it, or all of it.")
    cli.add_model_arguments(made)
    launch.add_arguments(made)
    made.add_argument("--data", metavar="FILE", type=Path, required=True, help="lines of JSON (docs/tune.md)")
    made.add_argument("--output", metavar="FOLDER", type=Path, help="what is trained, and the log")
    made.add_argument("--show", metavar="N", type=int, help="print N examples with what is learnt of them, and end")
    made.add_argument("--tensorboard", action="store_true", help="write the log for TensorBoard too")
    what = made.add_argument_group("what is trained")
    what.add_argument("--full", action="store_true", help="all weights instead of an adapter")
    what.add_argument("--rank", metavar="R", type=int, default=16, help="of the adapter (16)")
    what.add_argument("--alpha", metavar="A", type=float, help="its scale times the rank (twice the rank)")
    what.add_argument("--dropout", metavar="P", type=float, default=0.0, help="of what goes into the adapter (0)")
    what.add_argument("--targets", metavar="NAMES", help="modules, such as q_proj,v_proj (default: all linear ones)")
    what.add_argument("--preference", choices=("dpo", "ipo"), help="learn which of two answers was chosen")
    what.add_argument("--beta", metavar="B", type=float, default=0.1, help="how near --preference stays (0.1)")
    what.add_argument("--teacher", metavar="PATH", help="learn the distributions of this checkpoint")
    of_layers = "--ranks share every layer, as to generate, and all go through all rows"
    what.add_argument("--split", action="store_true", help=of_layers)
    steps = made.add_argument_group("steps")
    steps.add_argument("--epochs", metavar="N", type=float, default=3.0, help="times through the data (3)")
    steps.add_argument("--steps", metavar="N", type=int, help="steps instead of --epochs")
    steps.add_argument("--batch", metavar="N", type=int, default=16, help="rows of a step (16)")
    steps.add_argument("--micro-batch", metavar="N", type=int, default=4, help="rows at a time (4)")
    steps.add_argument("--rate", metavar="R", type=float, help="peak (2e-4; 2e-5 with --full, 5e-6 with --preference)")
    steps.add_argument("--schedule", choices=SCHEDULES, default="cosine")
    steps.add_argument(
        "--warmup", metavar="SHARE", type=float, default=0.03, help="of the steps, up to the peak (0.03)"
    )
    steps.add_argument("--floor", metavar="SHARE", type=float, default=0.1, help="of the peak, at the end (0.1)")
    steps.add_argument("--optimizer", choices=KINDS, default="adamw")
    steps.add_argument("--decay", metavar="D", type=float, default=0.0, help="of weights (0)")
    steps.add_argument("--clip", metavar="N", type=float, default=1.0, help="largest norm of gradients (1); 0: any")
    steps.add_argument("--bf16-weights", action="store_true", help="round at random, without a master copy in fp32")
    steps.add_argument("--recompute", action="store_true", help="layers twice, for memory (gradient checkpointing)")
    steps.add_argument("--seed", metavar="N", type=int, default=0)
    rows = made.add_argument_group("rows")
    rows.add_argument("--max-length", metavar="N", type=int, help="tokens of a row (4096, or the model's context)")
    rows.add_argument("--truncate", action="store_true", help="longer conversations lose their oldest turns")
    rows.add_argument("--pack", action="store_true", help="several examples in a row, which do not see each other")
    judge = made.add_argument_group("what is held out")
    judge.add_argument("--evaluation", metavar="FILE", type=Path, help="lines of JSON too")
    judge.add_argument("--evaluation-share", metavar="SHARE", type=float, default=0.0, help="of --data (0)")
    judge.add_argument("--every", metavar="N", type=int, help="steps between evaluations and saves (a tenth of all)")
    judge.add_argument("--patience", metavar="N", type=int, help="end after so many without a better one")
    return made


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    check(arguments)
    if (code := launch.elsewhere(arguments, "tune", argv, lambda: None, arguments.split)) is not None:
        return code
    prepared = prepare(arguments)
    if arguments.show is not None:
        print("\n\n".join(prepared.material.shown))
        return 0
    return job.run(prepared)


if __name__ == "__main__":
    sys.exit(main())
