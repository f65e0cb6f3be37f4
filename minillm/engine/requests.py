"""What callers may ask for, checked: values of a kind, one or many of them."""

from __future__ import annotations

import operator
from typing import Any

MAX_STOPS, MAX_STOP_LENGTH = 1000, 1000  # all are looked for at every token


def one_or_many(value: Any, kind: type, name: str) -> tuple[list[Any], bool]:
    """A value or a list of values as a list, and whether it was one."""
    values = [value] if isinstance(value, kind) else list(value) if isinstance(value, (list, tuple)) else [value]
    if not values and name == "prompt":
        raise ValueError("the list of prompts is empty; give at least one")
    for each in values:
        if not isinstance(each, kind):
            raise ValueError(f"{name} is {each!r}, expected {kind.__name__} or a list of them")
    return values, isinstance(value, kind)


def stop_strings(asked: Any, stated: Any) -> list[str]:
    """Those asked for, or with None those that generation_config.json states."""
    name, value = ("stop", asked) if asked is not None else ("generation_config.json: stop_strings", stated or [])
    stops, _ = one_or_many(value, str, name)
    if len(stops) > MAX_STOPS or max(map(len, stops), default=0) > MAX_STOP_LENGTH:
        raise ValueError(f"{name}: more than {MAX_STOPS:,} stop strings, or one of over {MAX_STOP_LENGTH:,} characters")
    if "" in stops:
        raise ValueError(f"{name}: a stop string is empty; every text contains it")
    return stops


def token_ids(ids: Any, name: str = "prompt_ids", below: int | None = None) -> list[int]:
    try:
        found = [operator.index(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    except TypeError:
        raise ValueError(f"{name} is {str(ids)[:60]}, expected integers or lists of them") from None
    if below is not None and (beyond := [i for i in found if not 0 <= i < below]):
        raise ValueError(f"{name}: {beyond[0]} is outside the vocabulary of {below}")
    return found


def ids_to_stop_at(eos: Any) -> frozenset[int]:
    """Of an eos_token_id in the configs: an id, a list of them, or None."""
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int):
            raise ValueError(f"eos_token_id {i!r} in the configs is no token id; expected an integer or a list of them")
    return frozenset(ids)
