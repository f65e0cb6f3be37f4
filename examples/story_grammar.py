"""A grammar of short English stories: everything that the demonstration model has ever read.

    python examples/story_grammar.py 80      # so many stories

`story(random.Random(seed))` is reproducible and needs nothing but the standard library.
"""

from __future__ import annotations

import random
import sys

ANIMALS = ["fox", "bear", "rabbit", "mouse", "owl", "frog", "duck", "cat", "dog", "hedgehog", "squirrel", "turtle"]
NAMES = ["Pip", "Milo", "Ruby", "Daisy", "Otto", "Luna", "Finn", "Hazel", "Bruno", "Clover", "Tilly", "Oscar"]
TRAITS = ["little", "brave", "shy", "kind", "curious", "clever", "sleepy", "cheerful"]
HOMES = [
    "by a quiet river",
    "under an old oak tree",
    "on a green hill",
    "near a blue lake",
    "at the edge of the forest",
    "in a cosy hole beneath the roots",
]
THINGS = {
    "kite": "fly it in the wind",
    "ball": "roll it down the hill",
    "boat": "sail it across the pond",
    "drum": "play it for everyone",
    "lamp": "light it in the dark",
    "book": "read it by the fire",
    "bell": "ring it in the morning",
    "basket": "fill it with berries",
}
COLOURS = ["red", "blue", "yellow", "green", "white", "golden"]
HIDING = ["behind a big stone", "in the tall grass", "under a bush", "beside the path", "in a hollow log"]
WEATHER = [("sunny", "warm"), ("rainy", "wet"), ("windy", "loud"), ("snowy", "cold"), ("foggy", "grey")]
FOODS = ["honey cake", "warm soup", "apple pie", "sweet berries", "fresh bread"]


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def story(rng: random.Random) -> tuple[str, str]:
    """(request, story): what a reader might ask for, and a story of four short parts that fits it."""
    animal, other = rng.sample(ANIMALS, 2)
    name, friend = rng.sample(NAMES, 2)
    thing = rng.choice(list(THINGS))
    found = f"{rng.choice(COLOURS)} {thing}"
    request = f"Tell me a story about {article(animal)} named {name} and {article(thing)}."
    parts = [
        _opening(rng, animal, name),
        _finding(rng, name, found),
        _meeting(rng, name, thing, other, friend),
        _ending(rng, name, thing, friend),
    ]
    return request, "\n".join(parts)


def _opening(rng: random.Random, animal: str, name: str) -> str:
    first = rng.choice(["Once upon a time there was", "Long ago there was", "There once was"])
    trait, home = rng.choice(TRAITS), rng.choice(HOMES)
    habit = rng.choice(
        [
            f"Every day {name} walked to the market and said hello to everyone.",
            f"{name} loved to sing, but nobody had ever heard it.",
            f"{name} had many questions and asked them all day long.",
            f"{name} liked to count the stars before going to sleep.",
        ]
    )
    return f"{first} {article(f'{trait} {animal}')} named {name}. {name} lived {home}. {habit}"


def _finding(rng: random.Random, name: str, found: str) -> str:
    sky, feeling = rng.choice(WEATHER)
    thought = rng.choice(["Whose can it be?", "How pretty it is!", "Someone must be missing it,"])
    return (
        f"One {sky} morning everything was {feeling} and still. {name} went for a walk and found "
        f'{article(found)} {rng.choice(HIDING)}. "{thought}" said {name}.'
    )


def _meeting(rng: random.Random, name: str, thing: str, other: str, friend: str) -> str:
    mood = rng.choice(["sad", "worried", "tired", "quiet"])
    plan = rng.choice(
        [
            f'"Then it is yours," said {name}, and gave the {thing} back at once.',
            f'"Here it is," said {name}. "I kept it safe for you."',
            f"{name} wanted to keep the {thing}, but gave it back all the same.",
        ]
    )
    return (
        f"Soon {name} met {article(other)} named {friend}. {friend} looked very {mood}. "
        f'"I have lost my {thing}," said {friend}. {plan}'
    )


def _ending(rng: random.Random, name: str, thing: str, friend: str) -> str:
    thanks = rng.choice(["Thank you, my friend!", "You are very kind!", "Now we can share it!"])
    food = rng.choice(FOODS)
    moral = rng.choice(
        [
            "From that day on they were the best of friends.",
            "That night they both slept well.",
            "And they played together every day after that.",
            "It was the best day of the whole year.",
        ]
    )
    return f'"{thanks}" said {friend}. They went to {THINGS[thing]}, and later they ate {food}. {moral}'


if __name__ == "__main__":
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        print(story(random.Random(seed))[1])
