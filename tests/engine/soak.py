"""The state machine of `test_invariants.py` for as long as you like, with other examples each time:

    python -m tests.engine.soak --minutes 30

Ends with exit code 1 and the steps that lead there as soon as a text is not what it is alone, or a block is lost.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.engine.test_invariants import Requests

ROUND = 20  # machines at a time


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.engine.soak", description=__doc__.partition(":")[0])
    parser.add_argument("--minutes", type=float, default=5.0, metavar="N")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="of a machine, at most")
    arguments = parser.parse_args(argv)
    if arguments.minutes <= 0 or arguments.steps < 1:
        parser.error("--minutes must be more than 0, and --steps at least 1")
    end, machines = time.monotonic() + 60 * arguments.minutes, 0
    options = settings(
        max_examples=ROUND, stateful_step_count=arguments.steps, deadline=None, derandomize=False, database=None,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    while time.monotonic() < end:
        run_state_machine_as_test(Requests, settings=options)
        machines += ROUND
        print(f"{machines} machines of up to {arguments.steps} steps, no fault", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
