"""How ranks come to be: `--ranks N` starts N processes of the same command on this machine, or is one of those that a
launcher has started, by what that has put into the environment.

    RANK, WORLD_SIZE                 torchrun, Ray Train, Kubernetes by hand; LOCAL_RANK is the number on its machine
    SLURM_PROCID, SLURM_NTASKS       srun
    MASTER_ADDR, MASTER_PORT         where the first rank listens

The first rank has the terminal, stdin and all. What another one says when it fails is the one line that is shown, and
then all end.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from minillm.guard import screen
from minillm.ops.ranks import ALONE, Alone
from minillm.parallel import part
from minillm.parallel.ranks import FAILED, LOST, TIMEOUT, Ranks
from minillm.parallel.split import MOST

NAMES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
STORE = "MINILLM_RANKS"  # a file where the processes of this machine find each other
POLL, LEAVE = 0.05, 10.0  # seconds between looks, and for a rank to leave by itself, with its own last word
ERROR = "minillm: error: "
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def add_arguments(made: argparse.ArgumentParser) -> None:
    """A model over several processes."""
    ranks = "split the model over N processes: N of this machine, or those that torchrun or srun has started"
    made.add_argument("--ranks", metavar="N", type=int, help=ranks)
    stages = "split the layers over N processes; a slow network and unequal machines are enough for this"
    made.add_argument("--stages", metavar="N", type=int, help=stages)
    layers = "the number of layers of each stage (default: by its free memory)"
    made.add_argument("--layers", metavar="N,N", help=layers)
    timeout = "seconds that a rank waits for another in a pass (default: 120)"
    made.add_argument("--rank-timeout", metavar="S", type=float, help=timeout)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `loading.load` takes of these. Raises ValueError for one without effect."""
    if arguments.rank_timeout is not None and processes(arguments) == 1:
        raise ValueError("--rank-timeout needs several processes; give --ranks or --stages too")
    given = {name: getattr(arguments, name) for name in ("ranks", "stages", "layers", "rank_timeout")}
    return {name: value for name, value in given.items() if value is not None}


def processes(arguments: argparse.Namespace) -> int:
    """How many a command asks for. Raises ValueError for numbers that cannot be."""
    return counted(arguments.ranks, arguments.stages, arguments.layers)


def counted(ranks: int | None, stages: int | None, layers: str | None) -> int:
    """How many processes these ask for. Raises ValueError for numbers that cannot be, and for what does not go
    together."""
    for name, value in (("ranks", ranks), ("stages", stages)):
        if value is not None and not 1 <= value <= MOST:
            raise ValueError(f"--{name} is {value}, it must be from 1 to {MOST}")
    parts = None if layers is None else layers.count(",") + 1
    if layers is not None and parts == 1:
        raise ValueError(f"--layers is {layers[:40]!r}, expected numbers of layers of several stages, such as 20,12")
    if stages not in (None, 1) and parts not in (None, stages):
        raise ValueError(f"--stages is {stages} and --layers has {parts} numbers; leave --stages out")
    if (made := (ranks or 1) * (parts or stages or 1)) > MOST:
        raise ValueError(f"{ranks} ranks in each of {parts or stages} stages are {made} processes, at most {MOST}")
    return made


def place(count: int) -> tuple[int, int, str | None] | None:
    """Which rank this process is of the `count` that a launcher has started, its number on its machine, and a file that
    all of them see; None where there is no launcher. Raises ValueError for other numbers than the launcher's."""
    for names in NAMES:
        rank, size, local = (os.environ.get(name) for name in names)
        if rank is None or size is None:
            continue
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            said = f"{names[0]} is {rank[:20]!r} and {names[1]} {size[:20]!r} in the environment"
            raise ValueError(f"{said}, expected a number below a number")
        if int(size) != count:
            said = f"--ranks, times --stages, is {count}, and {names[1]} in the environment is {size}"
            raise ValueError(f"{said}; start as many")
        store = os.environ.get(STORE)
        if store is None and (lacks := [each for each in ("MASTER_ADDR", "MASTER_PORT") if each not in os.environ]):
            raise ValueError(f"{' and '.join(lacks)} must be set: the address of the first rank, and a free port there")
        os.environ.update({"RANK": rank, "WORLD_SIZE": size})
        return int(rank), int(local or 0), store
    return None


def start(count: int, command: str, argv: Sequence[str]) -> int:
    """Run a command in `count` ranks on this machine; its exit code. Their sockets are those of this machine alone."""
    threads = str(max((os.cpu_count() or 1) // count, 1))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minillm-")))
        loopback = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
        common = {"OMP_NUM_THREADS": threads, **loopback, **os.environ, STORE: str(folder / "store")}
        said = [stack.enter_context(open(folder / f"rank{rank}", "wb+")) for rank in range(count)]
        made: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, made)
        before = [signal.signal(each, lambda number, _: _pass_on(made, number)) for each in SIGNALS]
        try:
            for rank in range(count):
                own = {**common, "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
                line = [sys.executable, "-m", "minillm", command, *argv]
                quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": said[rank]}
                made.append(subprocess.Popen(line, env=own, **(quiet if rank else {})))  # type: ignore[call-overload]
            return _watched(made, [folder / f"rank{rank}" for rank in range(count)])
        finally:
            for each, handler in zip(SIGNALS, before, strict=True):
                signal.signal(each, handler)


def _pass_on(made: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Ctrl-C reaches all processes of a terminal by itself; what ends this one is for the first rank to follow."""
    if number == signal.SIGTERM and made:
        made[0].send_signal(number)


def _watched(made: Sequence[subprocess.Popen[bytes]], said: Sequence[Path]) -> int:
    """Wait until the first rank has ended or another has failed; the exit code. What is wrong is said here, unless the
    first has said it: what all refuse it is given time to say, and a rank that lost another says nothing."""
    first, others = made[0], made[1:]
    while first.poll() is None:
        failed = [each.returncode for each in others if each.poll() not in (None, 0)]
        if failed and (min(failed) < 0 or not _ends(first, LEAVE)):
            break
        time.sleep(POLL)
    code = first.returncode
    if code in (0, LOST):
        for each in others:
            _ends(each, LEAVE)
    if code is not None and code != LOST and (code >= 0 or -code in SIGNALS):
        return code if code >= 0 else 128 - code
    found = [rank for rank, each in enumerate(made) if each.poll() not in (None, 0, LOST)]
    _end(made)  # first of all, so that none says more
    rank = found[0] if found else 0
    words = _last_words(made[rank], said[rank])
    words = words if words.startswith("rank ") else f"rank {rank} of {len(made)}: {words}"
    screen.error(f"{words}; all others end too")
    return FAILED


def _last_words(process: subprocess.Popen[bytes], said: Path) -> str:
    """What a process that has failed says of it."""
    lines = said.read_text(errors="replace").splitlines()
    if own := [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]:
        return own[-1]
    code = process.returncode
    if code < 0:
        why = ", as the system does where memory runs out" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{why}"
    if code == LOST:
        return "another one has ended"
    return f"ended with exit code {code}" + (f": {lines[-1]}" if lines else "")


def _ends(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(made: Sequence[subprocess.Popen[bytes]]) -> None:
    for each in made:
        if each.poll() is None:
            each.kill()
        each.wait()


def join(count: int, device: torch.device, timeout: float = TIMEOUT, stages: int = 1) -> tuple[Alone, torch.device]:
    """The ranks that this process is one of, and its device: of several GPUs the one with its number. Raises ValueError
    where nothing has started so many."""
    if count == 1:
        return ALONE, device
    if not timeout > 0:
        raise ValueError(f"--rank-timeout is {timeout:g}, it must be more than 0 seconds")
    if (found := place(count)) is None:
        remedy = "start it by torchrun, or a command with --ranks"
        raise ValueError(f"ranks is {count}, but no launcher started this process; {remedy}")
    rank, local, store = found
    if device.type == "cuda" and device.index is None:
        if local >= (there := torch.cuda.device_count()):
            raise ValueError(f"rank {rank} is number {local} on a machine with {there} GPUs; start fewer")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    return Ranks(rank, count, device, store, timeout, stages), device


def elsewhere(
    arguments: argparse.Namespace,
    command: str,
    argv: Sequence[str] | None,
    load: Callable[[], Any],
    splits: bool = True,
) -> int | None:
    """The exit code of a command that is not for this process: whose ranks are still to be started, or one behind the
    first, which does nothing but `load` its share and follow; None where it goes on here. Raises ValueError, before any
    is started, for a model that cannot be split so, where the command `splits` it."""
    if (count := processes(arguments)) == 1:
        return None
    if (found := place(count)) is None:
        if splits:
            part.check(arguments)
        return start(count, command, sys.argv[1:] if argv is None else argv)
    if found[0]:
        load()
    return None
