"""Train a checkpoint on your own data:

    python -m minillm.tune --weights PATH --data FILE.jsonl --output FOLDER [--rank 16] [--rate 2e-4] [--epochs 3]
    python -m minillm.tune … --quantize int4        quantise the base, for models that otherwise do not fit
    python -m minillm.tune … --full                 all weights instead of an adapter
    python -m minillm.tune … --preference dpo       from pairs of answers, one chosen and one rejected
    python -m minillm.tune … --teacher PATH         from a larger model's distributions, with the same vocabulary
    python -m minillm.tune … --ranks 2              in two processes, which share out rows and the model's weights
    python -m minillm.tune … --ranks 2 --split      which share every layer, for layers that one cannot hold
    python -m minillm.tune … --show 3               only print examples, with the learnt text in green

The memory needed is printed before anything is loaded; a run that does not fit is refused. The output is an adapter for
`--adapter` and PEFT, or a checkpoint. Ctrl-C saves, and the same command resumes. docs/tune.md has recipes.
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
    made = cli.parser("tune", "Train a checkpoint on your own data: an adapter for it, or all of its weights.")
    cli.add_model_arguments(made)
    launch.add_arguments(made)
    made.add_argument("--data", metavar="FILE", type=Path, required=True, help="lines of JSON (docs/tune.md)")
    made.add_argument("--output", metavar="FOLDER", type=Path, help="gets the adapter or checkpoint, and the log")
    made.add_argument("--show", metavar="N", type=int, help="only print N examples, with the learnt text in green")
    made.add_argument("--tensorboard", action="store_true", help="write the log for TensorBoard too")
    what = made.add_argument_group("what is trained")
    what.add_argument("--full", action="store_true", help="all weights instead of an adapter")
    what.add_argument("--rank", metavar="R", type=int, default=16, help="rank of the adapter (16)")
    what.add_argument("--alpha", metavar="A", type=float, help="scale of the adapter times its rank (twice the rank)")
    what.add_argument("--dropout", metavar="P", type=float, default=0.0, help="on the input of the adapter (0)")
    what.add_argument("--targets", metavar="NAMES", help="modules, such as q_proj,v_proj (default: all linear ones)")
    what.add_argument("--preference", choices=("dpo", "ipo"), help="learn which of two answers was chosen")
    what.add_argument("--beta", metavar="B", type=float, default=0.1, help="how near --preference stays (0.1)")
    what.add_argument("--teacher", metavar="PATH", help="learn the distributions of this checkpoint")
    of_layers = "--ranks share every layer, as in generate, and each processes all rows"
    what.add_argument("--split", action="store_true", help=of_layers)
    steps = made.add_argument_group("steps")
    steps.add_argument("--epochs", metavar="N", type=float, default=3.0, help="times through the data (3)")
    steps.add_argument("--steps", metavar="N", type=int, help="steps instead of --epochs")
    steps.add_argument("--batch", metavar="N", type=int, default=16, help="rows per step (16)")
    steps.add_argument("--micro-batch", metavar="N", type=int, default=4, help="rows at a time (4)")
    rate = "peak learning rate (2e-4; 2e-5 with --full, 5e-6 with --preference)"
    steps.add_argument("--rate", metavar="R", type=float, help=rate)
    steps.add_argument("--schedule", choices=SCHEDULES, default="cosine")
    steps.add_argument("--warmup", metavar="SHARE", type=float, default=0.03, help="steps before the peak (0.03)")
    steps.add_argument("--floor", metavar="SHARE", type=float, default=0.1, help="final rate, of the peak (0.1)")
    steps.add_argument("--optimizer", choices=KINDS, default="adamw")
    steps.add_argument("--decay", metavar="D", type=float, default=0.0, help="weight decay (0)")
    steps.add_argument("--clip", metavar="N", type=float, default=1.0, help="largest gradient norm (1); 0: no limit")
    steps.add_argument("--bf16-weights", action="store_true", help="stochastic rounding, without a master copy in fp32")
    steps.add_argument("--recompute", action="store_true", help="gradient checkpointing, to save memory")
    steps.add_argument("--seed", metavar="N", type=int, default=0)
    rows = made.add_argument_group("rows")
    rows.add_argument("--max-length", metavar="N", type=int, help="most tokens in a row (4096, or the model's context)")
    rows.add_argument("--truncate", action="store_true", help="longer conversations lose their oldest turns")
    rows.add_argument("--pack", action="store_true", help="several examples in a row, which do not see each other")
    judge = made.add_argument_group("evaluation")
    judge.add_argument("--evaluation", metavar="FILE", type=Path, help="lines of JSON, held out")
    judge.add_argument("--evaluation-share", metavar="SHARE", type=float, default=0.0, help="of --data, held out (0)")
    judge.add_argument("--every", metavar="N", type=int, help="steps between evaluations and saves (a tenth of all)")
    judge.add_argument("--patience", metavar="N", type=int, help="end after N evaluations without a better one")
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
