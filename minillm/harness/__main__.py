"""The tasks of EleutherAI's lm-evaluation-harness, run by minillm:

    python -m minillm.harness --model minillm --model_args weights=PATH,dtype=float32 --tasks NAMES

All arguments are those of the harness's own command, `lm_eval`: this one makes the model known to it and calls it. The
package also declares the model under `lm_eval.models`, the group of entry points that the harness looks through in
versions newer than 0.4.13: with those plain `lm_eval --model minillm …` is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from minillm import cli

MODEL, TARGET = "minillm", "minillm.harness.model:HarnessLM"


def register() -> None:
    """Make the model known to the harness, which imports it when it is asked for. Raises ValueError without lm_eval."""
    try:
        import lm_eval.models  # noqa: F401  (fills the registry, which does that itself only while it is empty)
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise ValueError(f"the harness needs lm_eval ({error}): pip install -e '.[eval]' in the clone") from None
    if MODEL not in model_registry:
        model_registry.register(MODEL, target=TARGET)


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    register()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *(sys.argv[1:] if argv is None else argv)]  # where it reads its arguments
    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
