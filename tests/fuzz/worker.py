"""A process that runs cases one after another: `python -m tests.fuzz.worker REQUESTS REPLIES COMMANDS`.

The first two are pipes by number, with a JSON object a line; a command is one of minillm, or module:function. The
process imports everything once and then forks: what runs the cases may die. Its memory is limited to what it has at
first and `MORE_BYTES`; what a case took is in its reply.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import resource
import sys
from pathlib import Path
from typing import Any

MORE_BYTES = 1_200_000_000
WARM = (  # what is measured, imported and compiled once
    "generate --weights honest --chat --prompt the --kernels reference",
    "generate --weights honest --prompt the --kernels reference --json",
    "plan --weights honest",
)
PROGRAM_SECONDS = 2.0  # for templates and tokenizers, instead of 10: many inputs take all that they get
CAPTURED = 200_000  # bytes of each stream that are sent back


def main(requests: int, replies: int, commands: list[str]) -> None:
    import torch

    from minillm import cli
    from minillm.report import cost
    from minillm.text import chat, jsonbackend
    from tests.fuzz import honest

    chat.MAX_SECONDS = jsonbackend.SECONDS = PROGRAM_SECONDS
    cost.copy_bandwidth = lambda device: None  # type: ignore[assignment]  # which takes longer than all else

    torch.set_num_threads(1)
    mains = {name: pkgutil.resolve_name(name) if ":" in name else cli.command(name) for name in commands}
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    home = Path.cwd()
    folder = home / "honest"
    folder.mkdir()
    for name, data in honest.FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    for warm in WARM:
        _run(mains, {"argv": warm.split()})
    gc.freeze()
    while True:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MORE_BYTES, resource.RLIM_INFINITY))
            _say(replies, {"pid": os.getpid()})
            _serve(mains, requests, replies)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        _say(replies, {"died": code, **_captured()})


def _serve(mains: dict[str, Any], requests: int, replies: int) -> None:
    for line in os.fdopen(requests, "rb", buffering=0, closefd=False):
        _say(replies, _run(mains, json.loads(line)))


def _run(mains: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """One case: its exit code, None where an exception came through; what it printed; bytes it took at most."""
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, children = _status("VmRSS"), _of_children()
    command, *arguments = request["argv"]
    code: Any = None
    try:
        code = mains[command](arguments)
    except SystemExit as left:
        code = left.code
    except BaseException as error:
        print(f"came through: {type(error).__name__} {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    now = _of_children()
    grown = _status("VmHWM") - before + (now if now > children else 0)
    return {"code": code, "grown": grown, **_captured()}


def _captured() -> dict[str, str]:
    """Of both streams the beginning, and the end of stderr too."""
    out, err = Path("out").read_bytes(), Path("err").read_bytes()
    err = err if len(err) <= CAPTURED else err[: CAPTURED // 2] + b" ... " + err[-CAPTURED // 2 :]
    return {"out": out[:CAPTURED].decode(errors="replace"), "err": err.decode(errors="replace")}


def _of_children() -> int:
    """Bytes of the largest that has ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _status(key: str) -> int:
    """Bytes, of what the kernel says of this process."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _say(replies: int, reply: dict[str, Any]) -> None:
    os.write(replies, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
