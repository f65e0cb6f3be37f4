"""minillm: real open-weight language models from code that can be read in an afternoon."""

import pathlib

__version__ = "0.1.0"

# In a checkout `kernels/` and `weights/` lie beside this folder and not inside it: let imports look there too.
if not (pathlib.Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(pathlib.Path(__file__).parent.parent))

from minillm.llm import LLM, Result
from minillm.loading import load

__all__ = ["LLM", "Result", "load"]
