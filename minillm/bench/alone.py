"""The engine in a process of its own, as `bench http` asks it: JSON lines on stdin and stdout.

`python -m minillm.bench.alone SETTINGS` with `weights`, `dtype`, `device`, `threads`, `memory` as JSON says once what
it has loaded. Then each line {"prompts": [[id, …], …], "new_tokens": N} is answered by the seconds until all have
ended, and those to each first token.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from minillm import cli
from minillm.engine.batching.threaded import AsyncEngine
from minillm.loading import load


def answer(llm: Any, engine: AsyncEngine, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    """Greedy, and to the last token."""
    options = {"max_new_tokens": new_tokens, "ignore_eos": True, "temperature": 0.0}
    began = time.monotonic()
    tickets = [engine.submit(llm.completion(prompt_ids=prompt, **options)) for prompt in prompts]
    for ticket in tickets:
        tuple(ticket)
    firsts = [(ticket.request.times.first or began) - began for ticket in tickets]
    return {"seconds": time.monotonic() - began, "first_token_s": firsts}


@cli.command_line
def main(argv: Any = None) -> int:
    settings = json.loads((sys.argv[1:] if argv is None else argv)[0])
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not mix with the answers
    llm = load(settings["weights"], dtype=settings["dtype"], device=settings["device"])
    engine = AsyncEngine(llm, settings["memory"])
    facts = {"vocabulary": llm.spec.vocab_size, "threads": torch.get_num_threads(), "device": str(llm.device)}
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(llm, engine, **json.loads(line))), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
