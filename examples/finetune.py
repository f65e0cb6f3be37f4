"""Teach the demonstration model another style from 200 stories: it knows tales of animals, and learns their diaries.

    python examples/finetune.py --out FOLDER

Writes the stories as lines of JSON, trains an adapter on them (`python -m minillm.tune`, under a minute on two cores),
and has the model answer the same requests before and after.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import minillm
from minillm.tune.__main__ import main as tune
from story_grammar import ANIMALS, COLOURS, FOODS, HIDING, NAMES, THINGS, WEATHER, article

STORIES, ASKED = 200, 8
FEELINGS = ["I was so happy that I danced.", "I laughed all the way home.", "My heart jumped like a frog.",
            "I have never been so proud.", "I could not stop smiling."]  # fmt: skip
PLANS = ["Tomorrow I will sleep late.", "Tomorrow we will meet again.", "Tomorrow I will look for more.",
         "Tomorrow I will tell everyone."]  # fmt: skip


def page(rng: random.Random) -> tuple[str, str]:
    """A request as the model knows it, and a page of a diary."""
    animal, other = rng.sample(ANIMALS, 2)
    name, friend = rng.sample(NAMES, 2)
    thing, colour, (sky, air) = rng.choice(sorted(THINGS)), rng.choice(COLOURS), rng.choice(WEATHER)
    text = (
        f"Dear diary, it is me, {name} the {animal}. Today was {sky} and {air}. I found {article(colour)} {thing} "
        f"{rng.choice(HIDING)}! I asked {friend} the {other} whose it was, and we went to {THINGS[thing]}. "
        f"{rng.choice(FEELINGS)} Then I ate {rng.choice(FOODS)}. {rng.choice(PLANS)} Good night, diary."
    )
    return f"Tell me a story about {article(animal)} named {name} and a {thing}.", text


def written(path: Path, count: int, rng: random.Random) -> None:
    """Lines of JSON for `--data`."""
    lines = []
    for asked, told in (page(rng) for _ in range(count)):
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
        lines.append(json.dumps({"messages": said}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def answers(adapter: Path | None, requests: list[str]) -> list[str]:
    llm = minillm.load(dtype="float32", device="cpu", adapter=adapter)
    found = llm.generate(messages=[[{"role": "user", "content": each}] for each in requests], max_new_tokens=200)
    assert isinstance(found, list)
    return [each.text for each in found]


def is_diary(text: str) -> bool:
    return text.startswith("Dear diary, it is me, ") and text.endswith(" Good night, diary.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that is not there yet")
    parser.add_argument("--steps", type=int, default=75)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    data, adapter, rng = arguments.out / "diaries.jsonl", arguments.out / "adapter", random.Random(1)
    written(data, STORIES, rng)
    options = ["--rate", "5e-3", "--batch", "8", "--micro-batch", "8", "--steps", str(arguments.steps)]
    code = tune(["--data", str(data), "--output", str(adapter), *options])
    if code:
        raise SystemExit(code)
    requests = [page(rng)[0] for _ in range(ASKED)]  # of the same kind, and none of those that were learnt
    for when, found in (("before", answers(None, requests)), ("after", answers(adapter, requests))):
        print(f"\n{when}: {sum(map(is_diary, found))} of {ASKED} answers are pages of a diary")
        print(f"> {requests[0]}\n{found[0]}")


if __name__ == "__main__":
    main()
