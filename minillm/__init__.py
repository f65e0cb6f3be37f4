"""minillm: real open-weight language models from code that can be read in an afternoon."""

import os
import pathlib
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

__all__ = ["LLM", "Result", "load"]


def __getattr__(name: str) -> Any:
    """Names of the package are imported when they are first used: PyTorch takes a second."""
    if name not in __all__:
        raise AttributeError(f"module 'minillm' has no attribute {name!r}")
    from minillm import llm, loading

    globals().update(LLM=llm.LLM, Result=llm.Result, load=loading.load)
    return globals()[name]


def _is_command() -> bool:
    """Whether this process is `python -m minillm…` or `minillm …`."""
    started = sys.orig_argv[1:]
    module = started[started.index("-m") + 1 :][:1] if "-m" in started else []
    return [each.split(".")[0] for each in module] == ["minillm"] or pathlib.Path(sys.argv[0]).name == "minillm"


if _is_command():  # Ctrl-C while modules are imported: `cli.run`, which takes over then, is not there yet
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
