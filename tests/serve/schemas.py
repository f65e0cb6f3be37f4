"""schemathesis against what the server says of itself at /openapi.json: no request that fits it, or nearly, may be
answered with a status of 500 or above.

    python -m tests.serve.schemas                       # a server of its own
    python -m tests.serve.schemas --url http://…:8000   # one that runs

Its report goes to stdout, and its exit code is 1 where it found something.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence

SECONDS = "120"  # for one answer: the machine may be busy
CACHE = "100000"  # bytes, so that answers without a limit are short


def command(url: str, examples: int, *more: str) -> list[str]:
    """schemathesis on a server, with so many random requests for each operation beside those that it always makes."""
    return [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--no-color",
        "--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--max-examples", str(examples),
        "--request-timeout", SECONDS, *more,
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.serve.schemas", description=__doc__.partition(":")[0])
    parser.add_argument("--url", help="a server that runs (default: one is started)")
    parser.add_argument("--examples", type=int, default=25, metavar="N", help="for each operation (default 25)")
    given = parser.parse_args(argv)
    if given.url:
        return run(given.url.rstrip("/"), given.examples)
    from tests.serve.test_command import Command

    server = Command("--cache-memory", CACHE)
    try:
        return run(server.url, given.examples)
    finally:
        server.end()


def run(url: str, examples: int) -> int:
    """Leaves nothing in the folder that it is called in."""
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.call(command(url, examples), cwd=folder)


if __name__ == "__main__":
    sys.exit(main())
