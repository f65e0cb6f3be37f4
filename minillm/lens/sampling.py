"""What temperature, top-k, top-p and min-p keep of a distribution, cut by cut, by `sampling.probabilities`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minillm.engine.sampling import LIMITS, Sampling, probabilities
from minillm.lens.forward import entropy, likeliest

CUTS = ("temperature", "top_k", "top_p", "min_p")  # in the order they are applied


def settings(text: str) -> Sampling:
    """ "temperature=0.8,top_p=0.9" as a `Sampling`, at temperature 1 where none is given. Raises ValueError."""
    found: dict[str, Any] = {"temperature": 1.0}
    for part in text.split(","):
        name, _, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in CUTS:
            raise ValueError(f"--sampling {part!r}: expected NAME=NUMBER with a name among {', '.join(CUTS)}")
        try:
            found[name] = (int if name == "top_k" else float)(value)
        except ValueError:
            raise ValueError(f"--sampling {part!r}: {name} is a number from {LIMITS[name][0]} up") from None
    chosen = Sampling(**found)
    if chosen.temperature == 0:
        raise ValueError("--sampling temperature=0 is greedy: the likeliest token alone is kept; give a temperature")
    return chosen


def cuts(logits_V: Tensor, chosen: Sampling, count: int) -> dict[str, Any]:
    """The distribution before and behind each cut that does something: how many tokens it keeps, the share of the
    model's own distribution they hold, its entropy in nats, and the chances of the model's `count` likeliest tokens."""
    plain = Sampling(temperature=1.0)
    own = probabilities(logits_V, plain)
    best = likeliest(own, count)
    applied: dict[str, Any] = {"temperature": 1.0}
    steps = [("model", own)]
    for name in CUTS:
        value = getattr(chosen, name)
        if value != getattr(plain, name):
            applied[name] = value
            steps.append((f"{name} {value:g}", probabilities(logits_V, Sampling(**applied))))
    return {
        "ids": best.tolist(),
        "steps": [
            {
                "name": name,
                "kept": int((chances > 0).sum()),
                "mass": own[chances > 0].sum().item(),
                "entropy": entropy(chances).item(),
                "probabilities": chances[best].tolist(),
            }
            for name, chances in steps
        ],
    }
