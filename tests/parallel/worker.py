"""One of several processes of a test: `python -m tests.parallel.worker N FOLDER`, which leaves what it has found in
FOLDER/found.json. All cases are in one run, as starting takes longer than they do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from minillm.hub import DEMO
from minillm.llm import LLM
from minillm.loading import load
from minillm.parallel.follow import follow
from minillm.parallel.launch import join
from tests.parallel.forks import WAITS
from tests.parallel.threads import share

PROMPTS = ["Once upon a time", "There was a dog who", "Lily"]
# By name: what is asked, and how it is loaded.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({"prompt": PROMPTS[0], "max_new_tokens": 14, "temperature": 0}, {}),
    "batch": ({"prompt": PROMPTS, "max_new_tokens": 6, "temperature": 0}, {}),
    "samples": ({"prompt": PROMPTS[1], "max_new_tokens": 6, "temperature": 0.8, "seed": 7, "n": 3}, {}),
    "lookup": ({"prompt": PROMPTS[2], "max_new_tokens": 12, "temperature": 0, "prompt_lookup": 2}, {}),
    "scores": ({"prompt": PROMPTS[0], "max_new_tokens": 4, "temperature": 0, "prompt_logprobs": 1}, {}),
    "plain": ({"prompt": PROMPTS[0], "max_new_tokens": 4, "temperature": 0}, {"kernels": "reference"}),
}


def answers(llm: LLM, how: dict[str, Any], draft: LLM | None = None) -> list[list[int]]:
    found = llm.generate(**how, **({"draft": draft} if draft else {}))
    return [each.token_ids for each in (found if isinstance(found, list) else [found])]


def threads() -> list[str]:
    """The names of this process's threads, where the system says them."""
    return [(each / "comm").read_text() for each in Path("/proc/self/task").glob("*")]


def main() -> None:
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    ranks, _ = join(count, torch.device("cpu"), WAITS)
    found: dict[str, Any] = {"working": any("gloo" in each for each in threads())}
    for kernels in ("auto", "reference"):
        llm = share(DEMO, ranks, kernels=kernels)  # type: ignore[arg-type]
        if ranks.rank:
            follow(llm.model, ranks)  # type: ignore[arg-type]
            continue
        for name, (how, options) in CASES.items():
            if options.get("kernels", "auto") == kernels:
                found[name] = answers(llm, how)
        if kernels == "auto":
            found["draft"] = answers(llm, CASES["greedy"][0], load(DEMO, dtype="float32", device="cpu"))
        ranks.tell("end")
    try:
        ranks.agreed("alike")  # type: ignore[attr-defined]
        ranks.agreed(f"unlike {ranks.rank}")  # type: ignore[attr-defined]
    except ValueError as error:
        found["unlike"] = str(error)
    if ranks.rank:
        ranks.told()  # type: ignore[attr-defined]
        ranks.leave()  # type: ignore[attr-defined]
    ranks.close()  # type: ignore[attr-defined]
    found["threads"] = [each for each in threads() if "gloo" in each]
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
