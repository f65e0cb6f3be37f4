"""Which block sizes a kernel runs with: a few named configurations for each class of GPU, the best of which is found by
timing them once and remembered on disk.

A kernel's file says what its blocks are and has a table of `Config`s; here is what all of them share. Nothing is timed
where there is one candidate only, in Triton's interpreter, or while a graph is recorded or traced: the first of the
table is taken then, unless an earlier run has found the best. What was found is kept by GPU and version of Triton in
`~/.cache/minillm/tuning` (or `$XDG_CACHE_HOME/minillm/tuning`), one JSON file that may be deleted at any time.
"""

import json
import os
import stat
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Shared memory of a program in bytes, by class; what is none of them, as consumers' cards, has 99 KiB.
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10, "other": 99 << 10}
LARGE = ("sm_80", "sm_90", "sm_100")  # with room for deep pipelines
HOPPER = ("sm_90", "sm_100")
SMALL = ("gfx942", "other")
EVERY = (*LARGE, *SMALL)
TIMED = 7  # calls of each candidate, of which the median counts
MAX_BYTES = 10_000_000  # of the file: a few hundred lines
PATIENCE = 5.0  # seconds that a process waits for others to have written it
FLUSHED = 256 << 20  # bytes read before each: several times a GPU's second-level cache


class Config(NamedTuple):
    """`blocks` are the sizes that the kernel's file names, `stages` of the pipeline that loads ahead of the products;
    `on` the classes of GPU that it is for."""

    name: str
    blocks: tuple[int, ...]
    warps: int
    stages: int
    on: tuple[str, ...] = EVERY

    @property
    def options(self) -> dict[str, int]:
        """What a launch takes."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    @property
    def paged_options(self) -> dict[str, int]:
        """The same for loads whose addresses are loaded before: the pipeline shares its stages between the two."""
        return {**self.options, "num_stages": 2 * self.stages - 1}


class Gpu:
    """What is known of one: its class, and the best configurations found so far, by kernel and key."""

    def __init__(self, index: int):
        self.name = f"{torch.cuda.get_device_name(index)}, triton {triton.__version__}"
        self.kind = _class_of(index)
        self.best = _read().get(self.name, {})
        self.settled: dict[tuple, tuple] = {}  # of kernel and key the table and which of it: no text is made for these


_gpus: dict[int, Gpu] = {}  # what has been asked of the driver and read from disk, once per process


def prepare(device: torch.device) -> Gpu:
    """Look at a GPU and at what is remembered of it: before a graph is traced, in which neither can be done."""
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _gpus:
        _gpus[index] = Gpu(index)
    return _gpus[index]


def _class_of(index: int) -> str:
    if torch.version.hip:
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    else:
        major, minor = torch.cuda.get_device_capability(index)
        name = f"sm_{10 * major if major > 8 else 10 * major + minor}"
    return name if name in SHARED_MEMORY else "other"


def candidates(table: Sequence[Config], name: str) -> list[Config]:
    """Those of a table that are for a class of GPU, best guess first."""
    return [config for config in table if name in config.on]


def run(
    kernel: str,
    key: tuple[Any, ...],
    table: Sequence[Config],
    device: torch.device,
    launch: Callable[[Config], None],
    size: int = 0,
    least: int = 0,
) -> None:
    """`launch(config)` with the best configuration for `key`: sizes and types that decide which one that is.

    A launch must only write what it does not read, for it may be made several times. Below the `least` size times say
    nothing: such work goes by the first of the table, and nothing is remembered. (`size` is looked at here, behind the
    question whether a graph is traced, so that no graph is bound to one side of it.)
    """
    if device.type != "cuda":  # the interpreter
        return launch(table[0])
    gpu = prepare(device)
    of, settled = gpu.settled.get((kernel, key), (None, None))
    if of is table:
        return launch(settled)
    few, asked = candidates(table, gpu.kind), f"{kernel} {' '.join(map(str, key))}"
    named = gpu.best.get(asked)
    known = [config for config in few if config.name == named]
    recorded = torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()
    if (known or len(few) == 1) and not torch.compiler.is_compiling():
        gpu.settled[kernel, key] = table, (known or few)[0]
    if known or len(few) == 1 or recorded or size < least:
        return launch((known or few)[0])
    gpu.best[asked] = _fastest(asked, few, launch).name
    _keep(gpu)
    return run(kernel, key, table, device, launch)


def forget(device: torch.device) -> None:
    """Time everything anew on this GPU."""
    prepare(device).best.clear()
    prepare(device).settled.clear()


def bucket(count: int) -> int:
    """The power of two at or above: sizes that differ from call to call are told apart so."""
    return triton.next_power_of_2(max(count, 1))


def seconds(call: Callable[[], Any], rounds: int = TIMED) -> float:
    """The median time of a call on the current GPU, after two to warm up. Before each much else is read: so
    what the call reads comes from memory, as in a model, and its launches are queued when the clock starts."""
    elsewhere, times = [], list[float]()
    with suppress(torch.cuda.OutOfMemoryError):
        elsewhere = 2 * [torch.zeros(FLUSHED // 8, dtype=torch.int64, device="cuda")]
    for turn in range(rounds + 2):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for each in elsewhere:
            each.amax()  # and not a write: that would leave the cache full of what must be written back first
        began.record()
        call()
        ended.record()
        ended.synchronize()
        if turn > 1:
            times.append(began.elapsed_time(ended) / 1000)
    return statistics.median(times)


def _fastest(asked: str, few: list[Config], launch: Callable[[Config], Any]) -> Config:
    times: dict[float, Config] = {}
    for config in few:
        with suppress(triton.runtime.errors.OutOfResources):  # of a GPU with less than its class has
            times[seconds(partial(launch, config))] = config
    if not times:
        raise ValueError(f"{asked}: no configuration fits this GPU; tried {', '.join(config.name for config in few)}")
    best = times[min(times)]
    print(f"minillm: tuned {asked}: {best.name}", file=sys.stderr)
    return best


def _file() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))  # which counts where it depends on no current folder
    return (given if given.is_absolute() else Path.home() / ".cache") / "minillm/tuning/kernels.json"


def _read() -> dict[str, dict[str, str]]:
    """What is on disk, by GPU: names by kernel and key. A damaged file counts as none."""
    found: Any = {}
    with suppress(OSError, ValueError, RuntimeError):  # nested too deeply, or nobody knows of a home
        path = _file()
        if stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            with open(path, "rb") as file:
                found = json.loads(file.read(MAX_BYTES))
    gpus = found.items() if isinstance(found, dict) else ()
    return {
        gpu: {key: name for key, name in names.items() if isinstance(name, str)}
        for gpu, names in gpus
        if isinstance(names, dict)
    }


def _keep(gpu: Gpu) -> None:
    """Remember for later processes, where the disk lets us, beside what other processes found meanwhile."""
    with suppress(OSError, RuntimeError), _alone(_file().parent) as folder:
        everything = _read()
        everything[gpu.name] = {**everything.get(gpu.name, {}), **gpu.best}
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            try:
                json.dump(everything, file, indent=1, sort_keys=True)
                file.close()
                os.replace(file.name, _file())
            except BaseException:
                os.unlink(file.name)
                raise


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """A folder in which other processes wait meanwhile, where the system lets them. After `PATIENCE` they do not: what
    is lost then is timed again."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY) if fcntl else -1
    try:
        until = time.monotonic() + PATIENCE
        while fcntl and time.monotonic() < until:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:  # of a disk that knows no locks
                break
        yield folder
    finally:
        if fcntl:
            os.close(handle)
