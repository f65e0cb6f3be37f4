"""minillm: real open-weight language models from code that can be read in an afternoon."""

import os
import pathlib
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout `kernels/` and `weights/` lie beside this folder and not inside it: let imports look there too.
if not (pathlib.Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(pathlib.Path(__file__).parent.parent))

if TYPE_CHECKING:
    from minillm.llm import LLM, Result
    from minillm.loading import load

__all__ = ["LLM", "Engine", "Result", "load"]


def __getattr__(name: str) -> Any:
    """Names of the package are imported when they are first used: PyTorch takes a second."""
    if name not in __all__:
        raise AttributeError(f"module 'minillm' has no attribute {name!r}")
    from minillm import llm, loading
    from minillm.engine.batching import threaded

    globals().update(Engine=threaded.AsyncEngine, LLM=llm.LLM, Result=llm.Result, load=loading.load)
    return globals()[name]


def _is_command() -> bool:
    """Whether this process is `python -m minillm…` or `minillm …`."""
    if sys.argv[:1] != ["-m"]:  # which the name of the program is until its module is found
        return pathlib.Path(sys.argv[0]).name in ("minillm", "minillm.exe")
    started = re.search(r"\0-[A-Za-z]*m\0?([^\0]*)", "\0".join(sys.orig_argv))
    return started is not None and started[1].split(".")[0] == "minillm"


def _leave_folder() -> None:
    """Import nothing from the current folder, where Python looks first with -m: it may be a checkpoint with code."""
    here, home = os.path.realpath(os.curdir), os.path.realpath(pathlib.Path(__file__).parent.parent)
    if sys.path and os.path.realpath(sys.path[0] or here) == here != home:
        del sys.path[0]


def _quietly(*_: Any) -> None:
    os._exit(130)


if _is_command():
    if sys.argv[:1] == ["-m"]:
        _leave_folder()
    # Ctrl-C while modules are imported: `cli.run`, which takes over then, is not there yet. Where it is ignored, as
    # in a script's background jobs, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quietly)
