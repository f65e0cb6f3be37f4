"""Teach the demonstration model another style from 200 stories: it tells long tales, and learns to tell them briefly,
nearly all in speech.

    python examples/finetune.py --out FOLDER

Writes the stories as lines of JSON, trains an adapter on them (`python -m minillm.tune`, under a minute on two cores),
and has the model answer the same requests before and after. The new style has no words that the model has never seen:
an adapter of the linear matrices leaves its embedding as it is, and with it what it can say.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import minillm
from minillm import cli
from minillm.tune.__main__ import main as tune
from story_grammar import ANIMALS, COLOURS, FOODS, HIDING, NAMES, THINGS, article

STORIES, ASKED = 200, 8


def brief(rng: random.Random) -> tuple[str, str]:
    """A request as the model knows it, and a tale in the new style."""
    animal, other = rng.sample(ANIMALS, 2)
    name, friend = rng.sample(NAMES, 2)
    thing = rng.choice(sorted(THINGS))
    text = (
        f"Long ago {name} the {animal} met {friend} the {other}. "
        f'"I have lost my {rng.choice(COLOURS)} {thing}," said {friend}. "Here it is," said {name}. "I kept it '
        f'{rng.choice(HIDING)}." "Thank you, my friend!" said {friend}. They went to {THINGS[thing]}, and later they '
        f"ate {rng.choice(FOODS)}. They both slept well."
    )
    return f"Tell me a story about {article(animal)} named {name} and {article(thing)}.", text


def written(path: Path, count: int, rng: random.Random) -> None:
    """Lines of JSON for `--data`."""
    lines = []
    for asked, told in (brief(rng) for _ in range(count)):
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
        lines.append(json.dumps({"messages": said}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def answers(adapter: Path | None, requests: list[str]) -> list[str]:
    llm = minillm.load(dtype="float32", device="cpu", adapter=adapter)
    found = llm.generate(messages=[[{"role": "user", "content": each}] for each in requests], max_new_tokens=200)
    assert isinstance(found, list)
    return [each.text for each in found]


def is_brief(text: str) -> bool:
    return text.startswith("Long ago ") and " met " in text[:40] and text.endswith("They both slept well.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that is not there yet")
    parser.add_argument("--steps", type=int, default=75)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    data, adapter, rng = arguments.out / "stories.jsonl", arguments.out / "adapter", random.Random(1)
    written(data, STORIES, rng)
    options = ["--rate", "5e-3", "--batch", "8", "--micro-batch", "8", "--steps", str(arguments.steps)]
    code = tune(["--data", str(data), "--output", str(adapter), *options])
    if code:
        return code
    requests = [brief(rng)[0] for _ in range(ASKED)]  # of the same kind, and none of those that were learnt
    for when, found in (("before", answers(None, requests)), ("after", answers(adapter, requests))):
        print(f"\n{when}: {sum(map(is_brief, found))} of {ASKED} answers are brief")
        print(f"> {requests[0]}\n{found[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
